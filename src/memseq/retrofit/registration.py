"""After `import memseq`, `AutoModelForCausalLM.from_pretrained(directory)` knows our models, without loading transformers.

transformers finds a model through a table from `model_type` to a config class. The table lives in one module; where that
module is loaded already, our config class enters it now, else when it is loaded. `configuration.py` needs nothing but the
base class of configs, which that module itself imports first; the model's own code follows when a config is made, and by
then all of transformers can be imported.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["register_with_transformers"]

TABLE = "transformers.models.auto.configuration_auto"


def register_with_transformers() -> None:
    """Enter our config class into the table of transformers: now if it is loaded, else when it will be."""
    if TABLE in sys.modules:
        _enter()
    elif not any(isinstance(finder, _AfterTable) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTable())


def _enter() -> None:
    try:
        import_module("memseq.retrofit.configuration")
    except ImportError as error:  # another program's import of transformers must not fail for our sake
        warnings.warn(f"transformers will not know models of memseq: {error}; run: pip install 'memseq[hf]'", stacklevel=2)


class _AfterTable(MetaPathFinder):
    """Finds the module of the table where Python finds it anyway, and adds one line to its execution."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == TABLE else None
        if spec is None or spec.loader is None:
            return None
        sys.meta_path.remove(self)  # its work is done
        execute = spec.loader.exec_module

        def execute_and_enter(module: ModuleType) -> None:
            execute(module)
            _enter()

        spec.loader.exec_module = execute_and_enter  # type: ignore[method-assign] (a loader belongs to one spec)
        return spec

"""A small config of every memory and model, and of every branch of theirs that is another function: `small/<stem>.py`.

Each file is imported on use, so that a stem is imported by its own test alone.
"""

import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def _configs(file: Path) -> list[Any]:
    return runpy.run_path(str(file))["configs"]()


CONFIGS: dict[str, Callable[[], list[Any]]] = {
    file.stem: partial(_configs, file) for file in sorted(Path(__file__).parent.glob("small/*.py"))
}

"""memseq: memory for sequence models, `y, state = memory(x, state)`.

Names and submodules are imported when they are first used: `import memseq` by itself loads neither torch nor anything else.
It arranges one thing: that `transformers`, imported before or after, knows directories that hold a model of ours.
"""

from importlib import import_module
from typing import Any

from memseq.retrofit.registration import register_with_transformers

_PUBLIC = {
    "contract": ("Memory", "check_memory"),
    "errors": (
        "CheckpointError",
        "ConfigError",
        "ContractError",
        "DataError",
        "InputError",
        "MemseqError",
        "MissingExtraError",
        "StateError",
        "TrainingError",
    ),
    "models": ("LanguageModel", "MemformerLMConfig", "StackConfig"),
    "pretrained": ("load_pretrained", "save_pretrained"),
    "state": (
        "State",
        "choose",
        "detach",
        "fork",
        "load_state",
        "map_state",
        "save_state",
        "select",
        "stack",
        "state_bytes",
        "tensors",
        "to",
    ),
    "streams": ("Session", "read_ragged"),
    "systems": ("cite", "register"),
    "training": ("StreamCell", "checkpointed_loss", "replay_backward"),
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}
_ALIASES = {"load": "load_pretrained", "save": "save_pretrained"}
_ROOMS = (
    *(
        "configs",
        "contract",
        "errors",
        "pretrained",
        "state",
        "systems",
        "checking",
        "ops",
        "layers",
        "memories",
        "models",
        "training",
        "streams",
    ),
    *("tasks", "probes", "retrofit", "applications", "recipes", "report", "cli"),
)

__all__ = sorted([*_HOME, *_ALIASES])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("memseq")
    if name in _ROOMS:
        return import_module(f"memseq.{name}")
    known = _ALIASES.get(name, name)
    if known not in _HOME:
        raise AttributeError(f"module 'memseq' has no attribute {name!r}")
    value = getattr(import_module(f"memseq.{_HOME[known]}"), known)
    globals()[name] = value  # found once, then an ordinary name
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, "__version__"])


register_with_transformers()

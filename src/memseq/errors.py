"""Every error that memseq raises on purpose; each says what was wrong, what was given and what to do.

    MemseqError
    ├── ConfigError        a config, a flag or two of them that contradict each other (also a ValueError)
    ├── StateError         a state of another model, batch size, dtype or device, or a broken state file (also a ValueError)
    ├── InputError         tokens or features a model cannot read: wrong shape, empty, ids out of range (also a ValueError)
    ├── DataError          text or data that is missing, unreadable, empty or not what it claims to be (also a ValueError)
    ├── CheckpointError    a directory that holds no model of ours, or a broken one (also a ValueError)
    ├── TrainingError      training that cannot go on, such as a loss that is no longer finite (also a RuntimeError)
    ├── ContractError      a memory that breaks the law; carries the report (also an AssertionError)
    └── MissingExtraError  an optional dependency that is not installed (also an ImportError)

`except MemseqError` catches them all; the command line prints the message on one line and exits with code 2.
"""

from typing import Any

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ContractError",
    "DataError",
    "InputError",
    "MemseqError",
    "MissingExtraError",
    "StateError",
    "TrainingError",
    "nearest",
]


class MemseqError(Exception):
    """The parent of every error of this library."""


class ConfigError(MemseqError, ValueError):
    """A config or a flag that cannot be built, or two that contradict each other."""


class StateError(MemseqError, ValueError):
    """A state that does not fit the model, the batch, the dtype or the device it is given to."""


class InputError(MemseqError, ValueError):
    """Tokens or features that a model cannot read."""


class DataError(MemseqError, ValueError):
    """Text or data that is missing, unreadable, empty or not what it claims to be."""


class CheckpointError(MemseqError, ValueError):
    """A directory that holds no model of ours, or a broken one."""


class TrainingError(MemseqError, RuntimeError):
    """Training that cannot go on, such as a loss that is no longer finite."""


class ContractError(MemseqError, AssertionError):
    """A memory that breaks the law `y, state = memory(x, state)`; `report` is what `check_memory` found, where it got that far."""

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class MissingExtraError(MemseqError, ImportError):
    """An optional dependency that is not installed.

    >>> str(MissingExtraError("transformers", extra="hf"))
    "transformers is not installed; run: pip install 'memseq[hf]'"
    """

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'memseq[{extra}]'")


def nearest(word: str, choices: list[str]) -> str:
    """The tail of an error message on a misspelled name: the nearest choice, then all of them.

    >>> nearest("memfromer", ["lstm", "memformer"])
    "did you mean 'memformer'? (one of: lstm, memformer)"
    """
    from difflib import get_close_matches

    close = get_close_matches(word, choices, n=1)
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"{guess}(one of: {', '.join(sorted(choices))})"

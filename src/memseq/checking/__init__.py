"""`check_memory`: the proof that a memory keeps the law `y, state = memory(x, state)`, one row per law.

    report = check_memory(LSTMConfig(d_model=16))
    print(report)                  # a table: law, holds, largest deviation, tolerance, where
    report.raise_if_broken()       # ContractError, naming the law, the deviation and the place

The laws are in `laws.py`, one function each. They are proven for generic weights (what `build()` gives plus a little
noise, so that a gate that starts at zero hides nothing) and for streams long enough to cross every border the config
names, so a small config is a fast proof: the code is what is proven, not the size.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from memseq.checking.laws import LAWS, Law
from memseq.checking.report import Report, Row
from memseq.checking.subject import Ruler, Subject
from memseq.errors import ConfigError, ContractError, nearest

__all__ = ["LAWS", "QUICK", "STANDARD", "Effort", "Report", "Row", "check_memory"]


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far the long readings go, in tokens. The exact laws do not depend on it."""

    bounded: int = 10_000  # the law of shape: the state after this many tokens is as large as the first
    finite: int = 100_000  # the law of precision: outputs and state are finite after this many tokens
    finite_unbounded: int = 10_000  # the same for a memory that grows, whose cost may be quadratic
    piece: int = 2_000  # tokens read at once

    def __post_init__(self) -> None:
        for name in ("bounded", "finite", "finite_unbounded", "piece"):
            if getattr(self, name) < 4:
                raise ConfigError(f"Effort counts tokens: {name} must be at least 4, got {getattr(self, name)}")


STANDARD = Effort()
QUICK = Effort(bounded=512, finite=1_024, finite_unbounded=512, piece=256)


def check_memory(
    config: Any,
    *,
    laws: Sequence[str] | None = None,
    tokens: int = 13,
    seed: int = 0,
    effort: Effort = STANDARD,
    device: torch.device | str = "cpu",
) -> Report:
    """Prove the law for the memory or language model that `config.build()` makes.

    `laws` names the laws to prove (default: all of `LAWS`); `tokens` is the least length of the streams read, lengthened
    where the config names a segment or a window; `effort` says how far the long readings go. A memory that raises under a
    law breaks that law, and the row says how. The caller's random generators are left as they were.

    Raises:
        ConfigError: `config` has no `build()`, or `laws` names something else than a law.
        ContractError: `config.build()` fails, so that there is nothing to prove.
    """
    chosen = list(LAWS) if laws is None else list(laws)
    for law in chosen:
        if law not in LAWS:
            raise ConfigError(f"there is no law {law!r}: {nearest(law, list(LAWS))}")
    if tokens < 4:
        raise ConfigError(f"tokens={tokens} is too short a stream to be cut in several ways; use at least 4")
    if not callable(getattr(config, "build", None)):
        raise ConfigError(f"check_memory proves what config.build() makes, and {config!r} has no build(); give it the config of a memory")
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            subject = Subject(config, tokens=tokens, seed=seed, device=device)
        except Exception as error:
            raise ContractError(f"{config!r} cannot be built: {tell(error)}") from error
        return Report(subject=repr(config), rows=tuple(prove(LAWS[name], subject, effort) for name in chosen))


def prove(law: Law, subject: Subject, effort: Effort) -> Row:
    """Run one law; whatever the memory raises on the way is what the row says."""
    ruler, began = Ruler(law.tolerance), time.perf_counter()
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong is said in the report, once
            law.prove(subject, ruler, effort)
    except Exception as error:  # noqa: BLE001 (a user's memory may raise anything, and that is a finding)
        ruler.fail(tell(error))
    return Row(
        law=law.name,
        claim=law.claim,
        passed=ruler.passed,
        deviation=ruler.deviation,
        tolerance=ruler.shown_tolerance,
        where=ruler.where,
        seconds=time.perf_counter() - began,
    )


def tell(error: Exception) -> str:
    """An exception on one line: its type, its text, and the innermost line of the memory (not ours, not torch's) it came from."""
    root = Path(__file__).parents[1]
    machinery = {root / "contract.py", root / "state.py", *Path(__file__).parent.glob("*.py"), *(root / "training").glob("*.py")}
    frames = [f for f in extract_tb(error.__traceback__) if Path(f.filename) not in machinery]
    frames = [f for f in frames if not {"torch", "jaxtyping", "beartype"} & set(Path(f.filename).parts) and not f.filename.startswith("<")]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"

"""The flags of `memseq train` made into a recipe, run, and told.

The flags a run was started with are kept in `command.json` beside it. `--resume` goes on with exactly those: a flag that
says otherwise is refused, except the two that say how long.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from memseq.errors import CheckpointError, ConfigError, nearest
from memseq.models.presets import SIZES, preset
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.settings import assignments, split, with_values
from memseq.recipes.train_text import TextRecipe, train_text
from memseq.training.backends import Backend, Backpropagation, CheckpointChain, Replay
from memseq.training.checkpoint import Checkpoints
from memseq.training.loop import Run, TrainingConfig
from memseq.training.optim import AdamWConfig, MuonConfig
from memseq.training.schedules import KeepAll, Offload, Revolve, Schedule, Sqrt

__all__ = ["train_command"]

# what a run is, apart from how long it takes and where it lies
KEPT = ("system", "files", "size", "segment_length", "horizon", "batch_size", "slots", "window", "lr", "optimizer", "dtype")
KEPT += ("tokenizer", "vocab_size", "seed", "set", "backend", "schedule")
LENGTH = ("steps", "minutes")
SHAPE = {"segment_length": "segment_length", "slots": "n_slots", "window": "window"}  # flags that change a size, and the size's fields
TRAINING = {"steps": "steps", "minutes": "minutes", "horizon": "horizon", "batch_size": "batch_size", "dtype": "dtype", "seed": "seed"}
TRAINING |= {"segment_length": "segment_length", "lr": "optimizer.lr"}


def train_command(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Run the flags of `memseq train` (None and () for those not given): a summary, the same for people, and an exit code."""
    keep_freed_memory()
    out = Path(flags["out"] or Path("runs") / flags["system"])
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in flags.items() if value not in (None, ())}
    kept = {name: given[name] for name in (*KEPT, *LENGTH) if name in given}
    if flags["resume"]:
        kept = resumed(kept, out)
    elif "vocab_size" in kept and kept.get("tokenizer") != "train":
        raise ConfigError("--vocab-size sizes a tokenizer that is trained; add --tokenizer train, or leave it out")
    recipe = recipe_of(kept, shard=flags["shard"])
    run = train_text(recipe, out, resume=flags["resume"], quiet=flags["quiet"], command=kept)
    return {"summary": summary(run), "shown": shown(run), "exit_code": run.exit_code}


def resumed(given: dict[str, Any], out: Path) -> dict[str, Any]:
    """The flags the run in `out` was started with, lengthened by those of `given`."""
    if Checkpoints(folder=out / "checkpoints").latest() is None:
        raise CheckpointError(f"{out} holds no run to resume; leave --resume out to start one, or name the directory by --out")
    try:
        kept = json.loads((out / "command.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{out / 'command.json'} cannot be read ({error}); resume this run from Python, as it was started") from None
    for name in KEPT:
        if name in given and given[name] != kept.get(name):
            flag = name if name in ("system", "files") else f"--{name.replace('_', '-')}"
            was = "was started without it" if name not in kept else f"had {_shown(kept[name])}"
            raise ConfigError(
                f"{flag} {_shown(given[name])} contradicts the run in {out}, which {was}; leave it out, or start another by --out"
            )
    length = {name: given[name] for name in LENGTH if name in given}
    return ({name: value for name, value in kept.items() if name in KEPT} | length) if length else kept


def recipe_of(kept: Mapping[str, Any], *, shard: bool = False) -> TextRecipe:
    """The recipe that flags describe. Raises `ConfigError` where they contradict each other or have no effect."""
    system, size = kept["system"], kept.get("size", "tiny")
    changes = {field: kept[flag] for flag, field in SHAPE.items() if flag in kept}
    plain = preset(system, size)
    for flag, field in SHAPE.items():
        if flag in kept and flag != "segment_length" and preset(system, size, **{field: vars(SIZES[size])[field] + 1}) == plain:
            raise ConfigError(f"--{flag} {kept[flag]} has no effect on {system}; leave it out")
    run_values, model_values = split(assignments(kept.get("set", [])), "training")
    for flag, path in TRAINING.items():
        if flag in kept and path in run_values:
            raise ConfigError(f"--{flag.replace('_', '-')} and --set training.{path} both set the same; give one of them")
    optimizer = {"adamw": AdamWConfig, "muon": MuonConfig}[kept.get("optimizer", "adamw")]
    plain_run = {name: kept[name] for name in ("minutes", "horizon", "batch_size", "dtype", "seed") if name in kept}
    steps = kept.get("steps", None if "minutes" in kept else 1000)
    length = kept.get("segment_length", SIZES[size].segment_length)
    rate = {"lr": kept["lr"]} if "lr" in kept else {}
    backend = backend_of(kept.get("backend", "replay"), kept.get("schedule"))
    training = TrainingConfig(steps=steps, segment_length=length, optimizer=optimizer(**rate), backend=backend, **plain_run)
    model = partial(_model, system, size, changes, model_values)
    model(256)  # a wrong path or value is refused before any text is read
    return TextRecipe(
        model=model,
        training=with_values(training, run_values),
        places=tuple(kept.get("files", ["stdlib"])),
        tokenizer=kept.get("tokenizer", "bytes"),
        vocab_size=kept.get("vocab_size", 4096),
        shard=shard,
    )


def backend_of(name: str, schedule: str | None) -> Backend:
    """The back end that the flags name; a schedule is of replay alone."""
    if name == "replay":
        return Replay(schedule=schedule_of(schedule or "all"))
    if schedule is not None:
        raise ConfigError(f"--schedule {schedule} says which states replay keeps, and --backend {name} keeps none; leave one of them out")
    return CheckpointChain() if name == "checkpoints" else Backpropagation()


def schedule_of(text: str) -> Schedule:
    """`all`, `sqrt`, `offload` or `revolve:N`."""
    name, colon, number = text.partition(":")
    if name == "revolve" and colon and number.isdecimal():
        return Revolve(slots=int(number))
    plain = {"all": KeepAll, "sqrt": Sqrt, "offload": Offload}
    if text not in plain:
        raise ConfigError(f"there is no schedule {text!r}; {nearest(name, [*plain, 'revolve:N'])}")
    return plain[text]()


def _model(system: str, size: str, changes: Mapping[str, int], values: Mapping[str, str], vocab_size: int) -> Any:
    return with_values(preset(system, size, vocab_size=vocab_size, **changes), values)


def summary(run: Run) -> dict[str, Any]:
    """A run as JSON values."""
    told = {"out": str(run.out), "steps": run.steps, "tokens": run.tokens, "seconds": run.seconds, "loss": run.loss, "dtype": run.dtype}
    return told | {"stopped_by": run.stopped_by} | ({} if run.valid is None else run.valid.line("valid_"))


def shown(run: Run) -> dict[str, Any]:
    """A run as a person reads it."""
    told: dict[str, Any] = {"model": str(run.out), "steps": run.steps, "tokens read": run.tokens, "seconds": round(run.seconds)}
    told |= {"tokens/s": run.tokens / max(run.seconds, 1e-9), "loss, nats a token": run.loss, "products in": run.dtype}
    if run.valid is not None:
        told |= {f"held-out {name.replace('_', ' ')}": value for name, value in run.valid.line().items()}
    return told | {"ended by": run.stopped_by}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

"""Checkpoints of training: everything that makes the next step what it would have been.

    out/checkpoints/step-00000500/
        training.json               step, tokens, seconds, dtype, number of processes
        model.safetensors           weights and buffers             (under FSDP2: shards/, by torch.distributed.checkpoint)
        optimizer.safetensors       what the optimisers remember
        rank-0.safetensors          the streams' states and the generators of this process
        rank-0.json                 its position in the text, Python's and NumPy's generators

A checkpoint is written beside its place, flushed to the disk and renamed: a directory named `step-…` is whole, whatever
killed the process or filled the disk. Nothing is pickled.
"""

import json
import os
import random
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memseq.errors import CheckpointError
from memseq.state import State, leaf_names, map_state, rebuild, tensors

__all__ = ["Checkpoints", "load_rank", "load_weights", "save_rank", "save_weights", "settled"]

PREFIX = "step-"
ALIGNMENT = 64  # bytes: where torch lets a new tensor begin


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of a run: a directory of `step-…` directories, the last `keep_last` of them kept."""

    folder: Path
    keep_last: int = 2

    def all(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        found = self.folder.glob(f"{PREFIX}*") if self.folder.is_dir() else ()
        return sorted(p for p in found if p.name.removeprefix(PREFIX).isdigit() and p.is_dir())

    def latest(self) -> Path | None:
        return next(reversed(self.all()), None)

    def beside(self, step: int) -> Path:
        """Where the checkpoint of `step` is written before it is renamed."""
        return self.folder / f".{PREFIX}{step:08d}.part"

    @contextmanager
    def writing(self, step: int) -> Generator[Path]:
        """An empty directory to fill; it becomes the checkpoint of `step` when the block ends without an error.

        Raises `CheckpointError` where the disk refuses; what was there before is untouched.
        """
        beside, place = self.beside(step), self.folder / f"{PREFIX}{step:08d}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f".{PREFIX}*"):  # of a process that was killed while it wrote or deleted
                shutil.rmtree(left)
            beside.mkdir()
            yield beside
            for file in [*(p for p in beside.rglob("*") if p.is_file()), *(p for p in beside.rglob("*") if p.is_dir()), beside]:
                _flush(file)
            if place.exists():  # the same step, after a run was resumed
                self._remove(place)
            os.replace(beside, place)
            _flush(self.folder)
            for old in self.all()[: -self.keep_last]:
                self._remove(old)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            kept = self.latest()
            rest = (
                f"the checkpoint {kept.name} is whole; free some space and resume" if kept else "there is no earlier one; free some space"
            )
            raise CheckpointError(f"the checkpoint of step {step} could not be written to {self.folder} ({error}); {rest}") from error

    def _remove(self, checkpoint: Path) -> None:
        """Rename, then delete: a half-deleted directory must not look like a checkpoint."""
        gone = checkpoint.with_name(f".{checkpoint.name}.old")
        os.replace(checkpoint, gone)
        shutil.rmtree(gone)


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); resume from another checkpoint") from None


def save_weights(path: Path, model: nn.Module) -> None:
    """Weights and buffers by name, those that are shared once."""
    save_file({name: t.detach().cpu().contiguous() for name, t in _weights(model).items()}, path)


def load_weights(path: Path, model: nn.Module) -> None:
    saved, here = read_tensors(path), _weights(model)
    if saved.keys() != here.keys() or any(saved[name].shape != t.shape for name, t in here.items()):
        odd = sorted(saved.keys() ^ here.keys()) or sorted(name for name, t in here.items() if saved[name].shape != t.shape)
        raise CheckpointError(
            f"{path} holds the weights of another model: {', '.join(odd[:5])} differ; resume with the config the run began with"
        )
    with torch.no_grad():
        for name, t in here.items():
            t.copy_(saved[name])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    shared = {id(p) for p in own.values()}
    kept = model.state_dict(keep_vars=True)
    return own | {name: t for name, t in kept.items() if name not in own and id(t) not in shared}


def read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # copies begin at a round address, as computed tensors do: products may round by where their factors lie
        return {name: t.clone() for name, t in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); it may be truncated: resume from another checkpoint") from None


def save_rank(folder: Path, rank: int, state: State, position: dict[str, Any]) -> None:
    """What is this process's own: its streams' states, its place in the text, its generators."""
    found, shown = {"rng.torch": torch.get_rng_state()}, {}
    if torch.cuda.is_available():
        found["rng.cuda"] = torch.cuda.get_rng_state()
    for name, t in zip(leaf_names(state), tensors(state), strict=True):
        t = t.detach()
        if t.numel() > 1 and not any(t.stride()):  # an empty buffer: one number shown in its full shape
            shown[name], t = list(t.shape), t.as_strided((1,), (1,))
        found[f"state.{name}"] = t.cpu().contiguous().clone()
    save_file(found, folder / f"rank-{rank}.safetensors")
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the generator that a model may draw from)
    rng = {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}
    write_json(folder / f"rank-{rank}.json", {"position": position, "shown": shown, "rng": rng})


def load_rank(folder: Path, rank: int, like: State) -> tuple[State, dict[str, Any]]:
    """The state (of the tree of `like`) and the position that `save_rank` wrote; the generators are set."""
    found, written = read_tensors(folder / f"rank-{rank}.safetensors"), read_json(folder / f"rank-{rank}.json")
    leaves = []
    for name, old in zip(leaf_names(like), tensors(like), strict=True):
        if f"state.{name}" not in found:
            raise CheckpointError(
                f"{folder} holds the states of another model: {name} is missing; resume with the config the run began with"
            )
        t = found[f"state.{name}"].to(old.device)
        leaves.append(t.reshape(()).expand(written["shown"][name]) if name in written["shown"] else t)
    torch.set_rng_state(found["rng.torch"])
    if "rng.cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["rng.cuda"])
    version, internal, gauss = written["rng"]["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = written["rng"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    return rebuild(like, leaves), written["position"]


def settled(state: State) -> State:
    """The state laid out in memory as a loaded one is: products may round by how their factors lie.

    Empty buffers (one number shown in its full shape) stay as they are.
    """

    def lay(t: Tensor) -> Tensor:
        in_place = t.is_contiguous() and t.data_ptr() % ALIGNMENT == 0
        return t if in_place or (t.numel() > 1 and not any(t.stride())) else t.contiguous().clone()

    return map_state(lay, state)


def _flush(path: Path) -> None:
    """Have the disk hold a file's bytes, or a directory's names, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

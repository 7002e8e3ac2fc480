"""What a stream remembers between two calls, and the verbs that serve every memory.

A state is a NamedTuple (nested where natural) of tensors. The batch axis comes first on every leaf; the tree is fixed
from the first token on. Floating leaves live where the model lives. Integer leaves are counters and token buffers:
they live on the host, where control flow reads them without waiting for the device. `()` is the state of a memory
that remembers nothing.

Nothing here writes to a tensor that it was given.
"""

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from memseq.errors import StateError

__all__ = [
    "State",
    "auxiliary",
    "batch_size",
    "choose",
    "detach",
    "fork",
    "is_finite",
    "leaf_names",
    "load_state",
    "map_state",
    "rebuild",
    "save_state",
    "select",
    "stack",
    "state_bytes",
    "tensors",
    "to",
]

State = Any  # a pytree of tensors; each memory names its own NamedTuple
S = TypeVar("S")
FORMAT = "memseq.state.1"


def tensors(state: State) -> list[Tensor]:
    """The leaves of a state, in the order of its fields."""
    leaves: list[Tensor] = []
    _gather(state, leaves)
    return leaves


def _gather(state: State, leaves: list[Tensor]) -> None:
    """As `pytree.tree_leaves`, which takes a hundred times as long to know a NamedTuple; every step of a stream asks this."""
    if isinstance(state, Tensor):
        leaves.append(state)
    elif type(state) is tuple or hasattr(type(state), "_fields"):
        for part in state:
            _gather(part, leaves)
    else:
        leaves.extend(pytree.tree_leaves(state))


def leaf_names(state: State) -> list[str]:
    """A dotted name for each leaf, in the order of `tensors`, such as `layers.0.memory`."""
    paths, _ = pytree.tree_flatten_with_path(state)
    return [".".join(str(getattr(k, "name", getattr(k, "idx", getattr(k, "key", k)))) for k in path) for path, _ in paths]


def map_state(function: Callable[..., Tensor], state: S, *others: S) -> S:
    """`function` on every leaf (and on the leaves of `others` at the same place); the tree stays."""
    try:
        return pytree.tree_map(function, state, *others)
    except ValueError as error:
        raise StateError(f"the states are of different kinds and cannot be read together: {error}") from None


def rebuild(state: S, leaves: Sequence[Tensor]) -> S:
    """A state of the same tree as `state` with other leaves, given in the order of `tensors`."""
    return pytree.tree_unflatten(list(leaves), pytree.tree_structure(state))


def batch_size(state: State) -> int | None:
    """The number of streams a state holds; None for `()`, which holds any."""
    leaves = tensors(state)
    return leaves[0].shape[0] if leaves else None


def auxiliary(state: State) -> Tensor | None:
    """What the memories of a state have added to the loss so far, [B]: the sum of the leaves named `auxiliary`, None without any.

    A memory with a loss of its own (a router's balance, a compression's error) adds each token's share to such a leaf while it
    trains. A leaf is all that the law lets through: it is cut, replayed and differentiated like everything else in a state.
    """
    found = [t for name, t in zip(leaf_names(state), tensors(state), strict=True) if name.rpartition(".")[2] == "auxiliary"]
    return torch.stack(found).sum(0) if found else None


def detach(state: S) -> S:
    """The same values, cut from the graph that made them; storage is shared."""
    return map_state(Tensor.detach, state)


def to(state: S, target: torch.device | str | torch.dtype) -> S:
    """The state on another device, or its floating leaves in another dtype; integer leaves stay on the host."""
    moves = {torch.bool} if not isinstance(target, torch.dtype) else set()
    return map_state(lambda t: t.to(target) if t.is_floating_point() or t.dtype in moves else t, state)


def select(state: S, rows: Tensor | Sequence[int] | slice) -> S:
    """The streams in `rows`, in that order: an index, a permutation, a boolean mask or a slice over the batch axis."""
    if isinstance(rows, slice):
        return map_state(lambda t: t[rows], state)
    rows = torch.as_tensor(rows)
    rows = rows if rows.numel() else rows.long()  # an empty list has no dtype of its own
    held = batch_size(state)
    if held is not None and rows.dtype == torch.bool and rows.shape != (held,):
        raise StateError(f"the state holds {held} streams and the mask has shape {list(rows.shape)}; give one truth value a stream")
    if held is not None and rows.dtype != torch.bool and rows.numel() and not (-held <= int(rows.min()) and int(rows.max()) < held):
        raise StateError(f"the state holds {held} streams, numbered 0 to {held - 1}; rows {rows.tolist()} were asked for")
    return map_state(lambda t: t[rows.to(t.device)], state)


def stack(states: Sequence[S]) -> S:
    """One state that holds the streams of all `states`, in order: the inverse of `select`.

    Leaves that grow (the stores of an unbounded memory) grow along axis 1 and hold zeros past each stream's own length;
    shorter ones are filled up with zeros.
    """
    if not states:
        raise StateError("stack needs at least one state, got an empty list")

    def join(*leaves: Tensor) -> Tensor:
        if any(t.shape[1:] != leaves[0].shape[1:] for t in leaves):
            if any(t.shape[2:] != leaves[0].shape[2:] for t in leaves):
                raise StateError(f"states of different models cannot be stacked: leaves of shapes {[tuple(t.shape) for t in leaves]}")
            longest = max(t.shape[1] for t in leaves)
            leaves = tuple(torch.cat([t, t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:])], dim=1) for t in leaves)
        return torch.cat(leaves)

    return map_state(join, *states)


def fork(state: S, copies: int) -> S:
    """Each stream `copies` times, copies of one stream side by side: many continuations of one past."""
    return map_state(lambda t: t.repeat_interleave(copies, dim=0), state)


def choose(mask: Tensor, chosen: S, other: S) -> S:
    """Row by row: `chosen` where `mask` [B] is true, `other` elsewhere. Resetting streams is `choose(reset, init, state)`."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return map_state(pick, chosen, other)


def is_finite(state: State) -> bool:
    """Whether every floating leaf holds finite numbers only."""
    return all(bool(t.isfinite().all()) for t in tensors(state) if t.is_floating_point())


def state_bytes(state: State) -> int:
    """Memory a stream occupies between two calls, in bytes.

    Counts the storage behind every leaf as it is now (a bfloat16 element is 2 bytes): storage that leaves share counts
    once, an expanded leaf (an empty buffer, one zero shown in its full shape) counts what it stores, and a leaf that is a
    view of something larger counts all that it keeps alive.
    """
    storages = (t.untyped_storage() for t in tensors(state))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def save_state(state: State, path: str | os.PathLike[str], *, model: Any = None, **metadata: Any) -> None:
    """Write a state to a safetensors file, beside its place and then renamed, so that a crash leaves no half file.

    `model` adds the fingerprint of its config, which `load_state` compares; `metadata` is any JSON value under a name.

    Raises `StateError` where the disk refuses; what was there before is untouched.
    """
    from safetensors.torch import save

    header = {"format": FORMAT, "model": fingerprint(model) if model is not None else "", "metadata": json.dumps(metadata)}
    leaves = {name: t.detach().cpu().contiguous().clone() for name, t in zip(leaf_names(state), tensors(state), strict=True)}
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(save(leaves, metadata=header))
        os.replace(beside, path)
    except OSError as error:
        kept = "the file that was there is as it was" if path.is_file() else "nothing was written"
        raise StateError(
            f"the state could not be saved to {path} ({error.strerror or error}); {kept}: free some space, or save it elsewhere"
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def load_state(path: str | os.PathLike[str], model: Any) -> State:
    """Read a state that `save_state` wrote, for `model`, onto the model's device.

    Raises `StateError` when the file is missing, truncated, not a state, or the state of another model.
    """
    return read_state(path, model)[0]


def read_state(path: str | os.PathLike[str], model: Any) -> tuple[State, dict[str, Any]]:
    """`load_state`, and the metadata that was saved with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            header = file.metadata() or {}
            # cloned: a tensor inside the file lies at any address, and kernels round otherwise where it is not aligned
            leaves = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise StateError(f"there is no state at {os.fspath(path)}; save one with save_state(state, path)") from None
    except (SafetensorError, OSError) as error:
        raise StateError(f"{os.fspath(path)} is not a readable state file ({error}); it may be truncated") from None
    if header.get("format") != FORMAT:
        found = header.get("format")
        raise StateError(f"{os.fspath(path)} is a safetensors file but not a state of memseq (format {found!r}, expected {FORMAT!r})")
    try:
        owner, metadata = header["model"], json.loads(header["metadata"])
    except (KeyError, ValueError) as error:
        raise StateError(f"{os.fspath(path)} is not a readable state file (its header is damaged: {error!r})") from None
    if owner and owner != fingerprint(model):
        raise StateError(f"{os.fspath(path)} is the state of another model (fingerprint {owner}, this model {fingerprint(model)})")
    rows = next((t.shape[0] for t in leaves.values() if t.ndim), 1)
    like = model.init_state(rows)
    names = leaf_names(like)
    if sorted(names) != sorted(leaves):
        raise StateError(f"{os.fspath(path)} is the state of another model: it holds {sorted(leaves)}, this model keeps {sorted(names)}")
    grows = 1 if getattr(model, "bounded", True) else 2  # the axis after the streams is as long as the stream was
    for name, t in zip(names, tensors(like), strict=True):
        found = leaves[name]
        if found.shape[:1] != t.shape[:1] or found.shape[grows:] != t.shape[grows:] or found.dtype != t.dtype:
            raise StateError(
                f"{os.fspath(path)} is the state of another model: {name} is {found.dtype} of shape {tuple(found.shape)},"
                f" this model keeps {t.dtype} of shape {tuple(t.shape)}"
            )
    return rebuild(like, [leaves[name].to(t.device) for name, t in zip(names, tensors(like), strict=True)]), metadata


def fingerprint(model: Any) -> str:
    """Sixteen hex digits that name a model's config, so that a state is not given to another model."""
    from hashlib import sha256

    return sha256(repr(getattr(model, "config", type(model).__qualname__)).encode()).hexdigest()[:16]

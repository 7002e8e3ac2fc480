"""The ways in which the laws read a memory: in pieces, by steps, for long, as a cell of replay, and loudly."""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memseq.checking.subject import HUGE, Subject
from memseq.state import State, leaf_names, tensors

__all__ = [
    "VERBS",
    "Piece",
    "Reading",
    "Weighted",
    "gradients",
    "in_pieces",
    "kept_alive",
    "long_reading",
    "named",
    "read_by_step",
    "root_mean_square",
    "thousandfold",
    "weighted",
    "with_dropout",
]

Reading = Callable[[Any, Tensor, State], tuple[Tensor, State]]  # memory, x, state -> y, state

VERBS = {
    "forward": lambda memory, x, state: memory(x, state),
    "step": lambda memory, x, state: memory.step(x[:, 0], state),
    "advance": lambda memory, x, state: memory.advance(x, state),
}


def named(state: State) -> list[tuple[str, Tensor]]:
    return list(zip(leaf_names(state), tensors(state), strict=True))


def in_pieces(sizes: int | list[int]) -> Reading:
    """Read in pieces of these sizes."""

    def read(memory: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        ys = []
        for piece in x.split(sizes, dim=1):
            y, state = memory(piece, state)
            ys.append(y)
        return torch.cat(ys, dim=1), state

    return read


def read_by_step(memory: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    ys = []
    for token in x.unbind(dim=1):
        y, state = memory.step(token, state)
        ys.append(y)
    return torch.stack(ys, dim=1), state


def with_dropout(config: Any, rate: float) -> Any:
    """The config with every field named `dropout` set to `rate`, at any depth."""
    if isinstance(config, tuple):
        return tuple(with_dropout(part, rate) for part in config)
    if not is_dataclass(config) or isinstance(config, type):
        return config
    changed = {f.name: rate if f.name == "dropout" else with_dropout(getattr(config, f.name), rate) for f in fields(config) if f.init}
    return replace(config, **changed)


def weighted(values: Sequence[Tensor]) -> Tensor:
    """A number that depends on every floating value, on each element with a weight of its own."""
    generator = torch.Generator().manual_seed(5)
    floats = [t for t in values if t.is_floating_point()]
    return sum(((t * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)).sum() for t in floats), start=torch.zeros(()))


def gradients(total: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    if not total.requires_grad or not sources:
        return [torch.zeros_like(s) for s in sources]
    return [g.detach() for g in torch.autograd.grad(total, sources, allow_unused=True, materialize_grads=True)]


def root_mean_square(found: Tensor, wanted: Tensor) -> float:
    """Of the difference, relative to what is wanted: one element may round to another side, all may not."""
    found, wanted = found.double(), wanted.double()
    usual = wanted.abs() < HUGE
    return float((found - wanted)[usual].square().sum().sqrt() / wanted[usual].square().sum().sqrt().clamp_min(1e-12))


def long_reading(subject: Subject, memory: Any, tokens: int, piece: int, *, marks: int = 1) -> Iterator[tuple[int, Tensor, State]]:
    """Read `tokens` tokens in large pieces; yields at the first token, at every piece and at each of `marks` equal parts."""
    state = memory.init_state(1)
    stops = sorted({1, *range(piece, tokens, piece), *(tokens * k // marks for k in range(1, marks + 1))})
    for i, (before, seen) in enumerate(itertools.pairwise([0, *stops])):
        y, state = memory(subject.stream(1, seen - before, salt=100 + i, dtype=torch.float32), state)
        yield seen, y, state


def thousandfold(memory: Any, x: Tensor) -> tuple[Any, Tensor]:
    """The memory and its input scaled by 1e3; a model's input is what its embedding makes of the tokens."""
    if x.is_floating_point():
        return memory, 1e3 * x
    memory = copy.deepcopy(memory)
    with torch.no_grad():
        for module in memory.modules():
            if isinstance(module, nn.Embedding):
                module.weight.mul_(1e3)
    return memory, x


def kept_alive(state: State) -> list[tuple[str, float]]:
    """For each leaf: the storage behind it, as a multiple of what the leaves that share it show, less one; zero where it is less.

    A leaf without elements may stand on one number, as `contract.empty` makes it.
    """
    shown: dict[int, int] = {}
    for t in tensors(state):
        shown[t.untyped_storage().data_ptr()] = shown.get(t.untyped_storage().data_ptr(), 0) + max(1, t.numel()) * t.element_size()
    storages = [(name, t.untyped_storage()) for name, t in named(state)]
    return [(name, max(0.0, storage.nbytes() / shown[storage.data_ptr()] - 1)) for name, storage in storages]


class Piece(NamedTuple):
    """What a replayed segment reads: its inputs, and a weight for each of its outputs, whose sum is its loss."""

    index: int
    x: Tensor
    weight: Tensor


class Weighted(nn.Module):
    """A memory as a cell of `memseq.training.replay`; notes the surroundings (random generators) each segment first met."""

    def __init__(self, memory: Any) -> None:
        super().__init__()
        self.memory = memory
        self.met: dict[int, Any] = {}
        self.around: Any = None

    def loss(self, piece: Piece, state: State) -> tuple[Tensor, State]:
        self.note(piece)
        y, state = self.memory(piece.x, state)
        return (y * piece.weight).sum(), state

    def advance(self, piece: Piece, state: State) -> State:
        self.note(piece)
        return self.memory.advance(piece.x, state)

    def note(self, piece: Piece) -> None:
        if piece.index not in self.met:
            self.met[piece.index] = self.around.save()

"""What the laws of a memory are proven on and measured with: a `Subject` (the memory and streams for it) and a `Ruler`."""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from memseq.state import State, map_state, stack

__all__ = ["Ruler", "Subject", "describe", "learned", "magnitude"]

HUGE = 1e20  # numbers that stand for "nothing yet", such as the running maximum of no logits


class Ruler:
    """Keeps the largest deviation that a law has shown, as a multiple of its tolerance, and where it was."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = self.shown_tolerance = tolerance
        self.passed, self.deviation, self.where = True, 0.0, "no deviation"

    def record(self, deviation: float, where: str, tolerance: float | None = None) -> None:
        """One measurement."""
        tolerance = self.tolerance if tolerance is None else tolerance
        deviation = math.inf if math.isnan(deviation) else deviation
        if _excess(deviation, tolerance) > _excess(self.deviation, self.shown_tolerance):
            self.deviation, self.shown_tolerance, self.where = deviation, tolerance, where
        self.passed = self.passed and deviation <= tolerance

    def fail(self, where: str) -> None:
        """A fact that is false and that no number measures; the first one is what is shown."""
        if self.passed or math.isfinite(self.deviation):
            self.deviation, self.shown_tolerance, self.where = math.inf, self.tolerance, where
        self.passed = False

    def hold(self, fact: bool, where: str) -> None:
        """`where` says what is wrong when `fact` is false."""
        if not fact:
            self.fail(where)

    def compare(self, found: Sequence[Tensor], wanted: Sequence[Tensor], names: Sequence[str], where: str, *, floor: float = 1e-3) -> None:
        """Tensor by tensor: shape, dtype and integers equal; floats relative to the largest number wanted, or to `floor`."""
        if len(found) != len(wanted):
            self.fail(f"{where}: {len(found)} leaves instead of {len(wanted)}")
            return
        for f, w, name in zip(found, wanted, names, strict=True):
            if f.shape != w.shape or f.dtype != w.dtype:
                self.fail(f"{name}, {where}: {describe(f)} instead of {describe(w)}")
            elif f.is_floating_point() or f.is_complex():
                self.record(_relative(f.detach(), w.detach(), floor), f"{name}, {where}")
            else:
                self.hold(torch.equal(f, w), f"{name}, {where}: integers differ")

    def identical(self, found: Sequence[Tensor], wanted: Sequence[Tensor], names: Sequence[str], where: str) -> None:
        """Tensor by tensor, bit for bit; not-a-number is equal to itself."""
        if len(found) != len(wanted):
            self.fail(f"{where}: {len(found)} leaves instead of {len(wanted)}")
            return
        for f, w, name in zip(found, wanted, names, strict=True):
            if f.shape != w.shape or f.dtype != w.dtype:
                self.fail(f"{name}, {where}: {describe(f)} instead of {describe(w)}")
            elif not torch.equal(f, w) and not bool(((f == w) | (f.isnan() & w.isnan())).all()):
                self.record(magnitude(f.double() - w.double()), f"{name}, {where}", 0.0)


def _excess(deviation: float, tolerance: float) -> float:
    if tolerance == 0.0:
        return math.inf if deviation else 0.0
    return deviation / tolerance


def _relative(found: Tensor, wanted: Tensor, floor: float) -> float:
    usual = wanted.abs() < HUGE
    if not torch.equal(found[~usual], wanted[~usual]):
        return math.inf
    found, wanted = found[usual], wanted[usual]
    return magnitude(found - wanted) / max(magnitude(wanted), floor)


def magnitude(t: Tensor) -> float:
    """The largest absolute value."""
    return float(t.detach().abs().max()) if t.numel() else 0.0


def describe(t: Tensor) -> str:
    """Such as `float64 [2, 13, 16]`."""
    return f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"


class Subject:
    """The memory under proof, and streams for it: features [B, T, D], or tokens [B, T] where the config has a vocabulary."""

    def __init__(self, config: Any, *, tokens: int, seed: int, device: torch.device) -> None:
        self.config, self.seed, self.device = config, seed, device
        self.vocab_size = getattr(config, "vocab_size", None)
        self.segment = getattr(config, "segment_length", None)  # an encoder's outputs see to the end of theirs
        self.built = self.build(config, noise=0.0)
        self.single = self.build(config)
        self.double = copy.deepcopy(self.single).double()
        self.border = max((length for length in _lengths(config) if length > 1), default=4)
        self.tokens = max(tokens, 2 * self.border + self.border // 2 + 1)
        self.ages = sorted({0, 3, 8, self.border + 1})  # a new stream, streams inside a segment, and one past a border

    def build(self, config: Any, *, noise: float = 0.02, seed: int | None = None) -> Any:
        """A memory in float32 and eval mode, the same for the same seed; `noise` makes the weights generic, none zero by design."""
        torch.manual_seed(self.seed if seed is None else seed)
        memory = config.build()
        with torch.no_grad():
            for parameter in memory.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
        return memory.to(self.device).eval()

    def state_elsewhere(self) -> State:
        """What `init_state` makes for a memory on a device that is not the host's, without needing one."""
        with torch.no_grad():
            return copy.deepcopy(self.single).to("meta").init_state(2)

    def stream(self, rows: int, tokens: int, *, salt: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """A stream of random tokens; another `salt` is another stream."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + 7919 * salt + 17)
        if self.vocab_size is not None:
            return torch.randint(self.vocab_size, (rows, tokens), generator=generator).to(self.device)
        return torch.randn(rows, tokens, self.config.d_model, generator=generator).to(self.device, dtype)

    def another(self, x: Tensor) -> Tensor:
        """A stream that differs from `x` in every token."""
        if self.vocab_size is None:
            return 3.0 - 2.0 * x + self.stream(*x.shape[:2], salt=99)
        return (x + 1 + self.stream(*x.shape[:2], salt=99) % max(1, self.vocab_size - 1)) % self.vocab_size

    def mixed(self) -> State:
        """One batch of streams of different ages."""
        with torch.no_grad():
            states = [self.double.init_state(1)]
            for i, age in enumerate(self.ages[1:]):
                states.append(self.double(self.stream(1, age, salt=20 + i), self.double.init_state(1))[1])
            return stack(states)

    def starts(self) -> Iterator[tuple[str, int, Callable[[], State]]]:
        """Where to begin: streams that are new, whose state may be learned, and streams of all ages, as leaves of a graph."""
        yield "from new streams", 2, lambda: self.double.init_state(2)
        yield "from streams of different ages", len(self.ages), lambda: learned(self.mixed())

    def cuts(self) -> list[tuple[str, list[int]]]:
        """Ways to cut a stream into pieces: halves, lone tokens, on and around each border, and one drawn at random."""
        T, b = self.tokens, self.border
        borders = {
            "in halves and single tokens": sorted({1, T // 2, T - 1}),
            "on the borders": list(range(b, T, b)),
            "around the borders": sorted({p for k in range(b, T, b) for p in (k - 1, k + 1) if 0 < p < T}),
            "at random": sorted(random.Random(self.seed).sample(range(1, T), 3)),
        }
        return [(name, [after - before for before, after in itertools.pairwise([0, *at, T])]) for name, at in borders.items()]


def _lengths(config: Any) -> Iterator[int]:
    """Every number of tokens after which the function may change its course: a segment, a window, a chunk, at any depth."""
    if isinstance(config, tuple | list):
        for part in config:
            yield from _lengths(part)
    elif is_dataclass(config):
        own = []
        for field in fields(config):
            value = getattr(config, field.name)
            if isinstance(value, int) and any(word in field.name for word in ("segment", "window", "chunk", "length", "block", "ahead")):
                own.append(int(value))
            else:
                yield from _lengths(value)
        yield sum(own)  # a memory of M tokens behind segments of L turns over after both


def learned(state: State) -> State:
    """The same numbers as leaves of a graph: an initial state that could be trained."""
    return map_state(lambda t: t.detach().clone().requires_grad_(t.is_floating_point()), state)

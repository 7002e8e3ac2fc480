"""Stuffed Mamba: three repairs, without training, for a memory whose state collapses beyond its training length.

Source: Stuffed Mamba (Chen et al., arXiv:2410.07145). A state larger than its training ever filled never learned to forget; read on for
long, and a few of its numbers outgrow the rest. Around a trained memory, whose matrices are S [B, H, K, V]:

    Scaled      S_t = (c a_t) S_{t-1} + (d B_t)^T u_t         forget more (c < 1), remember less (d < 1); Mamba-2
    Limited     S_t <- S_t min(1, p / |S_t|)                  a head's norm is held below p, every n tokens; any matrix memory
    Windowed    two states, each begun anew in turn every     what is read has seen between r and 2 r tokens; any bounded memory
                r tokens; the older one is read

The paper's window is the difference S_t - (a_{t-r+1} ... a_t) S_{t-r} of two large matrices, which loses their digits where a is near 1;
two alternating states hold the same thing, a state that began r to 2 r tokens ago, without a subtraction and for any transition.
`Limited` is part of the function computed, and so is n: chunks of reading change nothing, as borders are counted from a stream's first
token.

State: the memory's (twice for `Windowed`) and the tokens read.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.state import State, choose, map_state, tensors

__all__ = ["Limited", "Scaled", "StuffedMambaConfig", "StuffedMambaMemory", "StuffedMambaState", "Windowed"]


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """c and d of Mamba-2. Of the paper's values for 780M parameters: (0.99999, 0.7) and (0.9999, 1)."""

    retain: float = 0.9999
    insert: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Limited:
    """Every `every` tokens a head's matrix is scaled down to a norm of at most `largest`, or of what `calibrate` found."""

    largest: float
    every: int = 128

    def __post_init__(self) -> None:
        if not self.largest > 0 or self.every < 1:
            raise ConfigError(f"largest must be above 0 and every at least 1, got largest={self.largest} and every={self.every}")


@dataclass(frozen=True, kw_only=True)
class Windowed:
    """What is read has seen between `window` and 2 `window` tokens, all of them in the first 2 `window`."""

    window: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ConfigError(f"window must be at least 1, got {self.window}")


class StuffedMambaState(NamedTuple):
    states: tuple[State, ...]  # the memory's; of `Windowed` the older and the newer
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class StuffedMambaConfig:
    memory: Any  # a memory's config: Mamba-2 for `Scaled`, one with matrices [B, H, K, V] for `Limited`
    repair: Scaled | Limited | Windowed

    def __post_init__(self) -> None:
        if isinstance(self.repair, Scaled) and not {"retain", "insert"} <= {f.name for f in fields(self.memory)}:
            raise ConfigError(f"{type(self.memory).__name__} has no gates that Scaled can scale; use Limited or Windowed, or Mamba2Config")

    @property
    def d_model(self) -> int:
        return self.memory.d_model

    def build(self) -> "StuffedMambaMemory":
        return StuffedMambaMemory(self)


class StuffedMambaMemory(Memory[StuffedMambaState]):
    """`memory` holds the weights: load a trained memory's there."""

    largest: Tensor

    def __init__(self, config: StuffedMambaConfig) -> None:
        super().__init__()
        self.config, repair = config, config.repair
        inner = replace(config.memory, retain=repair.retain, insert=repair.insert) if isinstance(repair, Scaled) else config.memory
        self.memory: Memory[Any] = inner.build()
        if not self.memory.bounded:
            raise ConfigError(f"{type(self.memory).__name__} grows with the stream; the repairs are for states of fixed size")
        if isinstance(repair, Limited):
            heads = {t.shape[1] for t in tensors(self.memory.init_state(1)) if _is_matrix(t)}
            if len(heads) != 1:
                raise ConfigError(f"{type(self.memory).__name__} keeps no matrix a head; use Windowed, which any memory takes")
            self.register_buffer("largest", torch.full((heads.pop(),), float(repair.largest)))

    def init_state(self, batch_size: int) -> StuffedMambaState:
        fresh = self.memory.init_state(batch_size)
        return StuffedMambaState((fresh, fresh) if self._windowed else (fresh,), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: StuffedMambaState) -> tuple[Float[Tensor, "B T D"], StuffedMambaState]:
        y = []
        for piece in self._pieces(x, state):
            o, first = self.memory(piece, state.states[0])
            y.append(o)
            state = self._after(piece, first, state)
        return y[0] if len(y) == 1 else torch.cat(y, dim=1), state

    def advance(self, x: Float[Tensor, "B T D"], state: StuffedMambaState) -> StuffedMambaState:
        self.check_input(x, state)
        for piece in self._pieces(x, state):
            state = self._after(piece, self.memory.advance(piece, state.states[0]), state)
        return state

    @torch.no_grad()
    def calibrate(self, x: Float[Tensor, "B T D"], share: float = 0.5) -> None:
        """Set the limit of each head to `share` of the largest norm that it has in reading x, which is what the layer reads.

        Raises `ConfigError` unless the repair is `Limited`.
        """
        if not isinstance(self.config.repair, Limited):
            raise ConfigError(f"{type(self.config.repair).__name__} has no limit to calibrate; use Limited")
        state, seen = self.memory.init_state(x.shape[0]), torch.zeros_like(self.largest)
        for piece in x.split(self.config.repair.every, dim=1):
            state = self.memory.advance(piece, state)
            for t in tensors(state):
                if _is_matrix(t):
                    seen = torch.maximum(seen, t.flatten(2).norm(dim=2).amax(0).to(seen.dtype))
        self.largest.copy_(share * seen)

    @property
    def _windowed(self) -> bool:
        return isinstance(self.config.repair, Windowed)

    @property
    def _every(self) -> int | None:
        match self.config.repair:
            case Limited(every=n) | Windowed(window=n):
                return n
            case _:
                return None

    def _pieces(self, x: Tensor, state: StuffedMambaState) -> tuple[Tensor, ...]:
        """x cut where the first row comes to a border."""
        every, T = self._every, x.shape[1]
        if every is None:
            return (x,)
        borders = sorted({p for own in (state.position % every).tolist() for p in range(every - own, T, every)})
        return x.tensor_split(borders, dim=1)

    def _after(self, x: Tensor, first: State, state: StuffedMambaState) -> StuffedMambaState:
        """The state once the memory, or the older of the two, has read x."""
        states: tuple[State, ...] = (first, self.memory.advance(x, state.states[1])) if self._windowed else (first,)
        after = StuffedMambaState(states, state.position + x.shape[1])
        every = self._every
        if every is None:
            return after
        due = after.position % every == 0
        if not due.any():
            return after
        if self._windowed:
            mended = (states[1], self.memory.init_state(x.shape[0]))
        else:
            mended = (map_state(self._limit, first),)
        mended = after._replace(states=mended)
        return mended if due.all() else choose(due, mended, after)

    def _limit(self, t: Tensor) -> Tensor:
        if not _is_matrix(t):
            return t
        largest = self.largest.to(t.dtype)
        return t * (largest / torch.maximum(t.flatten(2).norm(dim=2), largest))[..., None, None]


def _is_matrix(t: Tensor) -> bool:
    return t.ndim == 4 and t.is_floating_point()

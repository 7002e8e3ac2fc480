"""A bidirectional stream: it answers for a token when it has read L more, and so keeps the whole law.

Source: latency-controlled bidirectional LSTM (Zhang et al., arXiv:1510.08983), in the form where every token sees exactly
L tokens of its future. The published form lets the tokens of a block share one backward pass: less work, and a look-ahead
that depends on a token's place in its block.

    y_{s + L} = past(x_1 .. x_s) + future(x_{s + L} .. x_s)

Causal as any memory, because it answers late: targets are to be L tokens late as well; the first L outputs, which answer
for nothing, are zero. Any causal memory serves, by its config; `future` has weights of its own and begins anew with every
window. All windows of a call are read at once: L + 1 times the work of one direction.

State: that of the forward memory and the L tokens not answered for yet, 4 B L D bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.phases import by_phase
from memseq.state import State

__all__ = ["LookAhead", "LookAheadConfig", "LookAheadState"]


class LookAheadState(NamedTuple):
    past: State  # of the forward memory, which has read every token that has been answered for
    waiting: Float[Tensor, "B L D"]  # the last tokens, not answered for yet; zeros in front while there are fewer
    read: Int[Tensor, "B"]  # tokens read so far, at most L, on the host


@dataclass(frozen=True, kw_only=True)
class LookAheadConfig:
    memory: Any  # the config of any causal memory
    look_ahead: int = 8  # L: tokens of the future that are read before a token is answered for

    def __post_init__(self) -> None:
        if self.look_ahead < 1:
            raise ConfigError(f"look_ahead must be at least 1, got {self.look_ahead}; without look-ahead use the memory itself")

    @property
    def d_model(self) -> int:
        return self.memory.d_model

    def build(self) -> "LookAhead":
        return LookAhead(self)


class LookAhead(Memory[LookAheadState]):
    """y_t is the answer for token t - L: targets are to be L tokens late as well."""

    def __init__(self, config: LookAheadConfig) -> None:
        super().__init__()
        self.config = config
        self.past, self.future = config.memory.build(), config.memory.build()
        if not self.past.causal:
            raise ConfigError(f"{type(self.past).__name__} reads both ways already; give a causal memory")

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.past.bounded

    def init_state(self, batch_size: int) -> LookAheadState:
        waiting = empty(next(self.parameters()).detach(), batch_size, self.config.look_ahead, self.config.d_model)
        return LookAheadState(self.past.init_state(batch_size), waiting, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: LookAheadState) -> tuple[Float[Tensor, "B T D"], LookAheadState]:
        if int(state.read.min()) != int(state.read.max()):
            return by_phase(self, x, state, state.read)
        tokens, ready, after = self._take(x, state)
        early = x.new_zeros(x.shape[0], x.shape[1] - ready, x.shape[2])
        if not ready:
            return early, after(state.past)
        y, past = self.past(tokens[:, :ready], state.past)
        windows = tokens.unfold(1, self.config.look_ahead + 1, 1).mT.flatten(0, 1).flip(1)  # [B x ready, L + 1, D], latest first
        ahead = self.future.advance(windows[:, :-1], self.future.init_state(windows.shape[0]))
        y = y + self.future.step(windows[:, -1], ahead)[0].view_as(y)
        return torch.cat([early.to(y.dtype), y], dim=1), after(past)

    def advance(self, x: Float[Tensor, "B T D"], state: LookAheadState) -> LookAheadState:
        self.check_input(x, state)
        if int(state.read.min()) != int(state.read.max()):
            return by_phase(self, x, state, state.read)[1]
        tokens, ready, after = self._take(x, state)
        return after(self.past.advance(tokens[:, :ready], state.past) if ready else state.past)

    def _take(self, x: Tensor, state: LookAheadState) -> tuple[Tensor, int, Callable[[State], LookAheadState]]:
        """The tokens waiting and read, how many of them can now be answered for, and the state around the forward memory's."""
        L, held = self.config.look_ahead, int(state.read[0])
        tokens = torch.cat([state.waiting, x.to(state.waiting.dtype)], dim=1)
        waiting, read = tokens[:, -L:].clone(), (state.read + x.shape[1]).clamp(max=L)
        tokens = tokens[:, L - held :]
        return tokens, max(0, tokens.shape[1] - L), lambda past: LookAheadState(past, waiting, read)

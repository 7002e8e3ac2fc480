"""Bidirectional memories: one reads forward, another of the same kind backward, and a token is read by both.

Source: Schuster & Paliwal 1997; Graves & Schmidhuber 2005 (BLSTM); latency-controlled: Zhang et al. (arXiv:1510.08983).

    y_t = past(x_1 .. x_t) + future(x_n .. x_t)       each with its read-out: W_yh h_t + W_yz z_t + b_y

Any causal memory serves, by its config; `future` has weights of its own. What is the last token n is what differs:

`BidirectionalConfig`    n ends the segment: an encoder, whose outputs belong to the tokens of the call.
`LookAheadConfig`        n = t + L: a stream that answers for each token L tokens later, and keeps the whole law.

A bidirectional score must never stand beside a streaming one without a mark: it has read the future.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.state import State, select, stack

__all__ = ["Bidirectional", "BidirectionalConfig", "LookAhead", "LookAheadConfig", "LookAheadState"]


def two_ways(config: Any) -> tuple[Memory[Any], Memory[Any]]:
    """A memory that reads forward and one that reads backward."""
    past, future = config.build(), config.build()
    if not past.causal:
        raise ConfigError(f"{type(past).__name__} reads both ways already; give a causal memory")
    return past, future


def read_backward(memory: Memory[Any], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """What a memory that has read nothing makes of x from its last token to its first; the outputs in the order of x."""
    return memory(x.flip(1), memory.init_state(x.shape[0]))[0].flip(1)


# ---------------------------------------------------------------- the encoder


@dataclass(frozen=True, kw_only=True)
class BidirectionalConfig:
    memory: Any  # the config of any causal memory
    segment_length: int | None = None  # tokens that see each other's future, counted from the start of a call; None: the call

    def __post_init__(self) -> None:
        if self.segment_length is not None and self.segment_length < 1:
            raise ConfigError(f"segment_length must be at least 1, got {self.segment_length}")

    @property
    def d_model(self) -> int:
        return self.memory.d_model

    def build(self) -> "Bidirectional":
        return Bidirectional(self)


class Bidirectional(Memory[State]):
    """An encoder: the outputs of a call know the tokens of their segment, earlier and later, and what came before the call.

    The state is that of the forward memory, so a long text may be read in calls. The law is weaker in this: the state and
    its gradients are the same for any cut, the outputs for cuts between segments only (for `segment_length=None`, for no
    cut at all, as the call is the segment). A token's output depends on no token after its segment. `step` reads a segment
    of one token. Texts of unequal length are encoded each alone, or equal lengths together: never cut at a common length.
    """

    causal = False

    def __init__(self, config: BidirectionalConfig) -> None:
        super().__init__()
        self.config = config
        self.past, self.future = two_ways(config.memory)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.past.bounded

    def init_state(self, batch_size: int) -> State:
        return self.past.init_state(batch_size)

    def forward(self, x: Float[Tensor, "B T D"], state: State) -> tuple[Float[Tensor, "B T D"], State]:
        y, state = self.past(x, state)
        B, T, D = x.shape
        L = T if self.config.segment_length is None else self.config.segment_length
        full, rest = x.split((T - T % L, T % L), dim=1)
        future = []
        if full.shape[1]:  # backward, segments know nothing of each other: all at once, as rows of one batch
            future.append(read_backward(self.future, full.reshape(-1, L, D)).reshape(B, -1, D))
        if rest.shape[1]:
            future.append(read_backward(self.future, rest))
        return y + torch.cat(future, dim=1), state

    def advance(self, x: Float[Tensor, "B T D"], state: State) -> State:
        self.check_input(x, state)
        return self.past.advance(x, state)


# ---------------------------------------------------------------- the stream


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
    """A bidirectional stream: y_t is the answer for token t - L, made from all tokens before it and L after it.

    Causal and lawful as any memory, because it answers late: targets are to be L tokens late as well, and the first L
    outputs, which answer for nothing, are zero. Backward, a window of L + 1 tokens is read for every token, all windows of
    a call at once: L + 1 times the work of one direction.
    """

    def __init__(self, config: LookAheadConfig) -> None:
        super().__init__()
        self.config = config
        self.past, self.future = two_ways(config.memory)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.past.bounded

    def init_state(self, batch_size: int) -> LookAheadState:
        waiting = empty(next(self.parameters()).detach(), batch_size, self.config.look_ahead, self.config.d_model)
        return LookAheadState(self.past.init_state(batch_size), waiting, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: LookAheadState) -> tuple[Float[Tensor, "B T D"], LookAheadState]:
        if int(state.read.min()) != int(state.read.max()):
            return self._row_groups(x, state)
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
            return self._row_groups(x, state)[1]
        tokens, ready, after = self._take(x, state)
        return after(self.past.advance(tokens[:, :ready], state.past) if ready else state.past)

    def _take(self, x: Tensor, state: LookAheadState) -> tuple[Tensor, int, Callable[[State], LookAheadState]]:
        """The tokens waiting and read, how many of them can now be answered for, and the state around the forward memory's."""
        L, held = self.config.look_ahead, int(state.read[0])
        tokens = torch.cat([state.waiting, x.to(state.waiting.dtype)], dim=1)
        waiting, read = tokens[:, -L:].clone(), (state.read + x.shape[1]).clamp(max=L)
        tokens = tokens[:, L - held :]
        return tokens, max(0, tokens.shape[1] - L), lambda past: LookAheadState(past, waiting, read)

    def _row_groups(self, x: Tensor, state: LookAheadState) -> tuple[Tensor, LookAheadState]:
        """Streams that have not all read L tokens yet and differ in how many: read with their equals."""
        groups = [(state.read == held).nonzero()[:, 0] for held in state.read.unique()]
        done = [self(x[rows.to(x.device)], select(state, rows)) for rows in groups]
        order = torch.cat(groups).argsort()
        return torch.cat([y for y, _ in done])[order.to(x.device)], select(stack([after for _, after in done]), order)

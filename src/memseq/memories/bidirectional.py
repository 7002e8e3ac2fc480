"""An encoder of two memories: one reads forward, another of the same kind backward, and a token is read by both.

Source: Schuster & Paliwal 1997; Graves & Schmidhuber 2005 (BLSTM); as reviewed in arXiv:1506.00019.

    y_t = past(x_1 .. x_t) + future(x_n .. x_t)       each with its read-out: W_yh h_t + W_yz z_t + b_y

Any causal memory serves, by its config; `future` has weights of its own and begins anew with every segment, whose last
token is n. What streams, and answers a few tokens late, is `memories/look_ahead.py`.

A bidirectional score must never stand beside a streaming one without a mark: it has read the future.
State: that of the forward memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.state import State

__all__ = ["Bidirectional", "BidirectionalConfig"]


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
        self.past, self.future = config.memory.build(), config.memory.build()
        if not self.past.causal:
            raise ConfigError(f"{type(self.past).__name__} reads both ways already; give a causal memory")

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


def read_backward(memory: Memory[Any], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """What a memory that has read nothing makes of x from its last token to its first; the outputs in the order of x."""
    return memory(x.flip(1), memory.init_state(x.shape[0]))[0].flip(1)

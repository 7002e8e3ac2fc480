"""Titans, memory as a layer (MAL): attention to near tokens reads what the long memory says, and nothing else.

Source: Titans (Behrouz et al., arXiv:2501.00663), section 4.3.

    y = M([P | x])                                P: learned tokens, read first, at the start of the stream only
    o = window attention of rms(y)                the outputs at P are the first tokens of the window

The norm between the two is not in the paper; without it the scale of the attention's logits would be the memory's to choose.
A block is x += MAL(norm x); x += FFN(norm x). State: the memory's and the window's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.memories.sliding_window import SlidingWindowConfig, SlidingWindowState
from memseq.memories.titans import TitansConfig, TitansState
from memseq.models.titans import Branch, TitansModel
from memseq.ops.precision import unrounded
from memseq.state import map_state

__all__ = ["MAL", "TitansMALConfig"]


@dataclass(frozen=True, kw_only=True)
class TitansMALConfig(TitansModel):
    window: SlidingWindowConfig

    @property
    def branch(self) -> "MAL":
        return MAL(d_model=self.d_model, n_persistent=self.n_persistent, memory=self.memory, window=self.window)

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "TitansMALConfig":
        window = SlidingWindowConfig(d_model=size.d_model, n_heads=size.n_heads, window=size.window)
        memory = TitansConfig.of_size(size)
        return cls(vocab_size=vocab_size, d_model=size.d_model, n_layers=size.n_layers, memory=memory, window=window)


class MALState(NamedTuple):
    memory: TitansState
    window: SlidingWindowState


@dataclass(frozen=True, kw_only=True)
class MAL(Branch):
    window: SlidingWindowConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window.d_model != self.d_model:
            raise ConfigError(f"window has d_model={self.window.d_model} and the model d_model={self.d_model}; make them equal")

    def build(self) -> "MALBranch":
        return MALBranch(self)


class MALBranch(Memory[MALState]):
    def __init__(self, config: MAL) -> None:
        super().__init__()
        self.config = config
        self.persistent = nn.Parameter(torch.randn(config.n_persistent, config.d_model))  # of the size of normalised inputs
        self.memory, self.attention = config.memory.build(), config.window.build()
        self.norm = nn.RMSNorm(config.d_model, eps=1e-5)

    def init_state(self, batch_size: int) -> MALState:
        state = MALState(self.memory.init_state(1), self.attention.init_state(1))
        if len(self.persistent):
            with unrounded(self.persistent):
                state = self.advance(self.persistent[None], state)
        return map_state(lambda t: t.expand(batch_size, *t.shape[1:]), state)

    def forward(self, x: Float[Tensor, "B T D"], state: MALState) -> tuple[Float[Tensor, "B T D"], MALState]:
        y, memory = self.memory(x, state.memory)
        o, window = self.attention(self.norm(y), state.window)
        return o, MALState(memory, window)

    def advance(self, x: Float[Tensor, "B T D"], state: MALState) -> MALState:
        y, memory = self.memory(x, state.memory)
        return MALState(memory, self.attention.advance(self.norm(y), state.window))

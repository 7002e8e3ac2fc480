"""Titans, memory as a gate (MAG): attention to near tokens, gated by what the long memory says.

Source: Titans (Behrouz et al., arXiv:2501.00663), section 4.2.

    y = window attention of x to [P | x]          every token sees P, itself and W - 1 tokens before it
    m = M(x), M having read P first               at the start of the stream, never again
    o = W_o (rms(y) * sigmoid(rms(m)))            norms with learned scales

A block is x += MAG(norm x); x += FFN(norm x). State: the memory's and the window's.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.layers.persistent import PersistentWindow, WindowState
from memseq.memories.titans import TitansConfig, TitansState
from memseq.models.titans import Branch, TitansModel
from memseq.ops.precision import unrounded
from memseq.state import map_state

__all__ = ["MAG", "TitansMAGConfig"]


@dataclass(frozen=True, kw_only=True)
class TitansMAGConfig(TitansModel):
    n_heads: int = 4  # of the attention
    window: int = 64  # tokens a token sees, itself included

    @property
    def branch(self) -> "MAG":
        shared = {"n_heads": self.n_heads, "window": self.window, "n_persistent": self.n_persistent}
        return MAG(d_model=self.d_model, memory=self.memory, **shared)

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "TitansMAGConfig":
        shared = {"d_model": size.d_model, "n_heads": size.n_heads}
        return cls(vocab_size=vocab_size, n_layers=size.n_layers, window=size.window, memory=TitansConfig.of_size(size), **shared)


class MAGState(NamedTuple):
    memory: TitansState
    window: WindowState


@dataclass(frozen=True, kw_only=True)
class MAG(Branch):
    n_heads: int
    window: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.d_model, self.n_heads, 0.0)
        if self.window < 1:
            raise ConfigError(f"window must be at least 1 (a token sees itself), got {self.window}")

    def build(self) -> "MAGBranch":
        return MAGBranch(self)


class MAGBranch(Memory[MAGState]):
    def __init__(self, config: MAG) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.attention = PersistentWindow(D, config.n_heads, config.window, config.n_persistent)
        self.memory = config.memory.build()
        self.near_norm, self.far_norm = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
        self.out = Linear(D, D, bias=False)
        nn.init.normal_(self.out.weight, std=D**-0.5)

    def init_state(self, batch_size: int) -> MAGState:
        return MAGState(after_persistent(self.memory, self.attention.heads.persistent, batch_size), self.attention.init_state(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: MAGState) -> tuple[Float[Tensor, "B T D"], MAGState]:
        y, window = self.attention(x, state.window)
        m, memory = self.memory(x, state.memory)
        return self.out(self.near_norm(y) * self.far_norm(m).sigmoid()), MAGState(memory, window)

    def advance(self, x: Float[Tensor, "B T D"], state: MAGState) -> MAGState:
        self.check_input(x, state)
        return MAGState(self.memory.advance(x, state.memory), self.attention.advance(x, state.window))


def after_persistent(memory: Any, persistent: Float[Tensor, "N D"], batch_size: int) -> Any:
    """The state of streams whose memory has read the persistent tokens and nothing else."""
    state = memory.init_state(1)
    if len(persistent):
        with unrounded(persistent):
            state = memory.advance(persistent[None], state)
    return map_state(lambda t: t.expand(batch_size, *t.shape[1:]), state)

"""BaseConv: a gated short convolution, the mixer between the layers of linear attention in Based and JRT-RNN.

Source: Zoology (Arora et al., arXiv:2312.04927); in the form of the language models of *Just read twice* (arXiv:2407.05483).

    u, g = W_1 x + b                   2D each
    c_t  = silu(sum_i w_i u_(t-2+i))   causal, depthwise, width 3
    y    = W_2 (c * g)

State: the last width - 1 inputs of the convolution, 8 B (width - 1) D bytes in float32.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv

__all__ = ["BaseConvConfig", "BaseConvMemory", "BaseConvState"]


class BaseConvState(NamedTuple):
    tail: Float[Tensor, "B W C"]  # W = width - 1 values of C = 2D channels, newest last


@dataclass(frozen=True, kw_only=True)
class BaseConvConfig:
    d_model: int
    width: int = 3  # tokens that a token sees, itself included

    def __post_init__(self) -> None:
        if self.d_model < 1:
            raise ConfigError(f"d_model must be at least 1, got {self.d_model}")
        if self.width < 2:
            raise ConfigError(f"width={self.width} mixes no tokens; use at least 2 (published: 3)")

    def build(self) -> "BaseConvMemory":
        return BaseConvMemory(self)


class BaseConvMemory(Memory[BaseConvState]):
    def __init__(self, config: BaseConvConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.up = Linear(D, 4 * D)
        self.conv = ShortConv(2 * D, config.width)
        self.down = Linear(2 * D, D, bias=False)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.up.bias)

    def init_state(self, batch_size: int) -> BaseConvState:
        return BaseConvState(self.conv.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: BaseConvState) -> tuple[Float[Tensor, "B T D"], BaseConvState]:
        u, gate = self.up(x).chunk(2, dim=-1)
        mixed, tail = self.conv(u, state.tail)
        return self.down(F.silu(mixed) * gate), BaseConvState(tail)

    def advance(self, x: Float[Tensor, "B T D"], state: BaseConvState) -> BaseConvState:
        self.check_input(x, state)
        u = F.linear(x[:, 1 - self.config.width :], *(z[: 2 * self.config.d_model] for z in (self.up.weight, self.up.bias)))
        return BaseConvState(self.conv(u, state.tail)[1])

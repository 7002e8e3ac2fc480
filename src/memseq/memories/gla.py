"""Gated linear attention: a matrix a head, each of its key channels fading at a rate that the token decides.

Source: Yang, Wang, Shen, Panda, Kim, "Gated Linear Attention Transformers" (arXiv:2312.06635).

    q, k, v, z = W x                                 q / sqrt(K)
    w_t = sigmoid(W_2 W_1 x + b)^(1/16)              per key channel, through rank 16; 0.958 where the logit is 0
    S_t = Diag(w_t) S_{t-1} + k_t^T v_t
    out = W_o (g * rms(q_t S_t) * silu(z))           rms over a head

`conv_width` puts a short convolution and SiLU before q, k, v, as later layers have it and as recall of pairs needs it.

State: S in float32, 4 B H K V bytes whatever the length of the stream, and with a convolution its last inputs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.head_norm import NormThenGate
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.layers.sizes import check_at_least_one
from memseq.ops.channel_decay import gla_chunkwise

__all__ = ["GLAConfig", "GLAMemory", "GLAState"]


class GLAState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last; none without one


@dataclass(frozen=True, kw_only=True)
class GLAConfig:
    d_model: int
    n_heads: int = 4
    key_size: int | None = None  # None: d_model / (2 n_heads)
    value_size: int | None = None  # None: d_model / n_heads
    gate_rank: int = 16
    gate_power: float = 16.0  # w = sigmoid^(1 / gate_power): the larger, the slower the memory fades
    conv_width: int | None = None  # None: the paper's layer, without a convolution
    norm_eps: float = 1e-5
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "n_heads", "key_size", "value_size", "gate_rank", "conv_width", "chunk_size")
        if self.gate_power <= 0:
            raise ConfigError(f"gate_power must be above zero, got {self.gate_power}")
        if (self.key_size is None or self.value_size is None) and self.d_model % (2 * self.n_heads):
            near = 2 * self.n_heads * -(-self.d_model // (2 * self.n_heads))
            raise ConfigError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} heads of d_model / (2 n_heads) key channels;"
                f" give key_size and value_size, or use a multiple of {2 * self.n_heads}, such as d_model={near}"
            )

    def build(self) -> "GLAMemory":
        return GLAMemory(self)


class GLAMemory(Memory[GLAState]):
    def __init__(self, config: GLAConfig) -> None:
        super().__init__()
        self.config = c = config
        self.key_size, self.value_size = c.key_size or c.d_model // (2 * c.n_heads), c.value_size or c.d_model // c.n_heads
        self.sizes = [c.n_heads * self.key_size, c.n_heads * self.key_size, c.n_heads * self.value_size]
        self.inputs = Linear(c.d_model, sum(self.sizes) + self.sizes[2] + c.gate_rank, bias=False)  # q, k, v, z, rank of the gate
        self.gate = Linear(c.gate_rank, self.sizes[1])
        self.conv = ShortConv(sum(self.sizes), c.conv_width, silu=True) if c.conv_width else None
        self.norm = NormThenGate(self.value_size, c.norm_eps)
        self.out = Linear(self.sizes[2], c.d_model, bias=False)
        for layer in (self.inputs, self.gate, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.gate.bias)

    def init_state(self, batch_size: int) -> GLAState:
        w = self.out.weight
        S = w.new_zeros(batch_size, self.config.n_heads, self.key_size, self.value_size, dtype=torch.promote_types(w.dtype, torch.float32))
        return GLAState(S, self.conv.init_tail(batch_size) if self.conv else empty(w, batch_size, 0, sum(self.sizes)))

    def forward(self, x: Float[Tensor, "B T D"], state: GLAState) -> tuple[Float[Tensor, "B T D"], GLAState]:
        c = self.config
        mixed, z, low = self.inputs(x).split([sum(self.sizes), self.sizes[2], c.gate_rank], dim=-1)
        mixed, tail = self.conv(mixed, state.tail) if self.conv else (mixed, state.tail)
        logits = self.gate(low)
        with torch.autocast(x.device.type, enabled=False):
            q, k, v = (t.to(state.S.dtype).unflatten(-1, (c.n_heads, -1)).transpose(1, 2) for t in mixed.split(self.sizes, dim=-1))
            log_w = F.logsigmoid(logits.to(state.S.dtype)) / c.gate_power
            log_w = log_w.unflatten(-1, (c.n_heads, -1)).transpose(1, 2)
            y, S = gla_chunkwise(q * self.key_size**-0.5, k, v, log_w, state.S, chunk_size=c.chunk_size)
        return self.out(self.norm(y.transpose(1, 2), z.unflatten(-1, (c.n_heads, -1))).flatten(2)), GLAState(S, tail)

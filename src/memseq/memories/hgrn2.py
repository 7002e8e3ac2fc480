"""HGRN-2: a gated recurrent network whose state is a matrix; what a channel forgets is what it has room to write.

Source: Qin, Yang, Sun, Shen, Li, Sun, Zhong, "HGRN2: Gated Linear RNNs with State Expansion" (arXiv:2404.07904).

    q_t = silu(W_q x),   v_t = W_v x
    f_t = l + (1 - l) sigmoid(W_f x)                 per channel; l is the lower bound of the layer
    S_t = Diag(f_t) S_{t-1} + (1 - f_t)^T v_t        the key is tied to the gate
    out = W_o (g * rms(q_t S_t / sqrt(K)))           rms over all heads

A layer higher up keeps for longer: give the layers of a stack bounds that grow from 0. `conv_width` puts a short convolution
before q, f, v.

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
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.layers.sizes import check_at_least_one
from memseq.ops.channel_decay import gla_chunkwise

__all__ = ["HGRN2Config", "HGRN2Memory", "HGRN2State"]


class HGRN2State(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last; none without one


@dataclass(frozen=True, kw_only=True)
class HGRN2Config:
    d_model: int
    n_heads: int = 4  # the paper has d_model / 128: a head's K is how far the state is expanded
    lower_bound: float = 0.0  # of the forget gate
    conv_width: int | None = None  # None: the paper's layer, without a convolution
    norm_eps: float = 1e-5
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "n_heads", "conv_width", "chunk_size")
        check_heads(self.d_model, self.n_heads, 0.0)
        if not 0 <= self.lower_bound < 1:
            raise ConfigError(f"lower_bound must lie in [0, 1): at 1 nothing is ever written, got {self.lower_bound}")

    def build(self) -> "HGRN2Memory":
        return HGRN2Memory(self)


class HGRN2Memory(Memory[HGRN2State]):
    def __init__(self, config: HGRN2Config) -> None:
        super().__init__()
        self.config = c = config
        self.sizes = 3 * [c.d_model]  # q, f, v
        self.inputs = Linear(c.d_model, sum(self.sizes), bias=False)
        self.conv = ShortConv(3 * c.d_model, c.conv_width) if c.conv_width else None
        self.norm = nn.RMSNorm(c.d_model, eps=c.norm_eps)
        self.out = Linear(c.d_model, c.d_model, bias=False)
        for layer in (self.inputs, self.out):
            nn.init.normal_(layer.weight, std=c.d_model**-0.5)

    def init_state(self, batch_size: int) -> HGRN2State:
        c, w = self.config, self.out.weight
        K = c.d_model // c.n_heads
        S = w.new_zeros(batch_size, c.n_heads, K, K, dtype=torch.promote_types(w.dtype, torch.float32))
        return HGRN2State(S, self.conv.init_tail(batch_size) if self.conv else empty(w, batch_size, 0, 3 * c.d_model))

    def forward(self, x: Float[Tensor, "B T D"], state: HGRN2State) -> tuple[Float[Tensor, "B T D"], HGRN2State]:
        c = self.config
        mixed = self.inputs(x)
        mixed, tail = self.conv(mixed, state.tail) if self.conv else (mixed, state.tail)
        with torch.autocast(x.device.type, enabled=False):
            q, f, v = (t.unflatten(-1, (c.n_heads, -1)).transpose(1, 2) for t in mixed.to(state.S.dtype).chunk(3, dim=-1))
            # 1 - f = (1 - l) sigmoid(-logit): exact where the gate is all but closed
            room = (1 - c.lower_bound) * (-f).sigmoid()
            log_f = F.logsigmoid(f) if c.lower_bound == 0 else (-room).log1p()
            y, S = gla_chunkwise(F.silu(q) * q.shape[-1] ** -0.5, room, v, log_f, state.S, chunk_size=c.chunk_size)
            y = F.rms_norm(y.transpose(1, 2).flatten(2), (c.d_model,), self.norm.weight.to(y.dtype), c.norm_eps).to(mixed.dtype)
        return self.out(y), HGRN2State(S, tail)

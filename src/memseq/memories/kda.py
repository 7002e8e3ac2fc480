"""Kimi delta attention: Gated DeltaNet whose key channels fade each at its own rate.

Source: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture" (arXiv:2510.26692).

    q, k, v = silu(conv(W x))                                          then q, k to length one, q / sqrt(K)
    w_t     = exp(-e^{A_log} softplus(W_f2 W_f1 x + dt_bias))          per key channel, A_log per head
    b_t     = strength * sigmoid(W_b x)                                how much of what the key retrieves is replaced
    S_t     = (I - b_t k_t^T k_t) Diag(w_t) S_{t-1} + b_t k_t^T v_t
    out     = W_o (g * rms(q_t S_t) * sigmoid(W_g2 W_g1 x + c))        rms over a head

The gates W_f, W_g go through the rank of a head's values.

State: S in float32 and the convolution's last inputs, 4 B H (K V + (width - 1) (2 K + V)) bytes in float32, at any length.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.layers.conv_heads import ConvHeads, check_delta_heads, check_strength, delta_sizes
from memseq.layers.head_norm import unit
from memseq.layers.linear import Linear
from memseq.ops.channel_decay import kda_chunkwise

__all__ = ["KDAConfig", "KDAMemory", "KDAState"]


class KDAState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last


@dataclass(frozen=True, kw_only=True)
class KDAConfig:
    d_model: int
    n_heads: int = 4
    key_size: int | None = None  # None: d_model / n_heads
    value_size: int | None = None  # None: d_model / n_heads
    conv_width: int = 4
    strength: float = 1.0  # of b_t; up to 2, where a write may turn what it erases around (eigenvalues down to -1)
    norm_eps: float = 1e-5
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_delta_heads(self)
        check_strength(self.strength)

    def build(self) -> "KDAMemory":
        return KDAMemory(self)


class KDAMemory(Memory[KDAState]):
    def __init__(self, config: KDAConfig) -> None:
        super().__init__()
        self.config = c = config
        H, (K, V) = c.n_heads, delta_sizes(c)
        self.key_size, self.value_size = K, V
        # besides q, k, v: the ranks of the two gates, and b
        self.heads = ConvHeads(c, extra=2 * V + H)
        self.fade = Linear(V, H * K, bias=False)  # W_f2
        self.open = Linear(V, H * V)  # W_g2, c
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16).log_())
        step = torch.empty(H * K).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it is the step
        for parameter in (self.A_log, self.dt_bias):
            parameter.no_decay = True  # ty: ignore[missing-attribute]
        self.norm = nn.RMSNorm(V, eps=c.norm_eps)
        self.out = Linear(H * V, c.d_model, bias=False)
        for layer in (self.fade, self.open, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.open.bias)

    def init_state(self, batch_size: int) -> KDAState:
        return KDAState(self.heads.init_matrix(batch_size), self.heads.conv.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: KDAState) -> tuple[Float[Tensor, "B T D"], KDAState]:
        c, dtype = self.config, state.S.dtype
        q, k, v, rest, tail = self.heads(x, state.tail)
        low_f, low_g, b = rest.split([self.value_size, self.value_size, c.n_heads], dim=-1)
        fade, opened = self.fade(low_f), self.open(low_g)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (unit(t).transpose(1, 2) for t in (q, k))
            step = F.softplus(fade.to(dtype) + self.dt_bias.to(dtype)).unflatten(-1, (c.n_heads, -1)).transpose(1, 2)
            log_w = -self.A_log.to(dtype).exp()[:, None, None] * step
            beta = c.strength * b.to(dtype).sigmoid().transpose(1, 2)
            y, S = kda_chunkwise(q * self.key_size**-0.5, k, v.transpose(1, 2), beta, log_w, state.S, chunk_size=c.chunk_size)
            y = F.rms_norm(y.transpose(1, 2), (self.value_size,), self.norm.weight.to(dtype), c.norm_eps).flatten(2)
            y = (y * opened.to(dtype).sigmoid()).to(opened.dtype)
        return self.out(y), KDAState(S, tail)

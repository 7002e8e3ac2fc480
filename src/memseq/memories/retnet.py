"""RetNet: a matrix a head that fades at a fixed rate, one rate a head, with rotary positions.

Source: Sun et al., "Retentive Network" (arXiv:2307.08621); positions by RoFormer (arXiv:2104.09864).

    q, k, v = W x                               or silu(conv(W x)); q and k turned to the absolute position t, q / sqrt(K)
    S_t     = g_h S_{t-1} + k_t^T v_t           g_h = 1 - 2^(-5 - h), h = 0 .. H - 1: half-lives of 22 tokens, 44, 88, ...
    out     = W_o (w * rms(q_t S_t) * silu(W_z x))      rms over a head

State: S in float32, 4 B H K V bytes, the position, and the convolution's last inputs where there is one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.contract import Memory, empty
from memseq.layers.attention import check_heads
from memseq.layers.head_norm import NormThenGate
from memseq.layers.linear import Linear
from memseq.layers.rotary import Rotary, places, rotate
from memseq.layers.short_conv import ShortConv
from memseq.layers.sizes import check_at_least_one
from memseq.ops.linear_attention import decay_chunkwise

__all__ = ["RetNetConfig", "RetNetMemory", "RetNetState"]


class RetNetState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last; none without one
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class RetNetConfig:
    d_model: int
    n_heads: int = 4
    expand_value: int = 2  # features of a head's value, in d_model / n_heads
    conv_width: int | None = None  # None: the paper's layer, without a convolution
    rotary_base: float = 10000.0
    norm_eps: float = 1e-6
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, 0.0)
        check_at_least_one(self, "expand_value", "conv_width", "chunk_size")

    def build(self) -> "RetNetMemory":
        return RetNetMemory(self)


class RetNetMemory(Memory[RetNetState]):
    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.key_size, self.value_size = c.d_model // c.n_heads, c.expand_value * c.d_model // c.n_heads
        self.rotary = Rotary(self.key_size, c.rotary_base)
        width = c.n_heads * self.value_size
        self.sizes = [c.d_model, c.d_model, width, width]
        self.inputs = Linear(c.d_model, sum(self.sizes), bias=False)  # q, k, v, z
        self.conv = ShortConv(2 * c.d_model + width, c.conv_width, silu=True) if c.conv_width else None
        self.norm = NormThenGate(self.value_size, c.norm_eps)
        self.out = Linear(width, c.d_model, bias=False)
        for layer in (self.inputs, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def init_state(self, batch_size: int) -> RetNetState:
        w, dtype = self.out.weight, torch.promote_types(self.out.weight.dtype, torch.float32)
        S = w.new_zeros(batch_size, self.config.n_heads, self.key_size, self.value_size, dtype=dtype)
        tail = self.conv.init_tail(batch_size) if self.conv else empty(w, batch_size, 0, sum(self.sizes[:3]))
        return RetNetState(S, tail, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: RetNetState) -> tuple[Float[Tensor, "B T D"], RetNetState]:
        H, (B, T, _) = self.config.n_heads, x.shape
        mixed, z = self.inputs(x).split([sum(self.sizes[:3]), self.sizes[3]], dim=-1)
        mixed, tail = self.conv(mixed, state.tail) if self.conv else (mixed, state.tail)
        q, k, v = (t.unflatten(-1, (H, -1)) for t in mixed.split(self.sizes[:3], dim=-1))
        with torch.autocast(x.device.type, enabled=False):
            q, k = (t.to(state.S.dtype) for t in (q, k))
            turn = self.rotary(places(state.position, T, x.device), q.dtype)[..., None, :]
            q, k = rotate(q, turn) * self.key_size**-0.5, rotate(k, turn)
            rates = torch.arange(H, dtype=torch.float64, device=x.device).neg().sub(5).exp2().neg().log1p().to(state.S.dtype)
            log_a = rates[None, :, None].expand(B, H, T)
            y, S = decay_chunkwise(*(t.transpose(1, 2) for t in (q, k, v)), log_a, state.S, chunk_size=self.config.chunk_size)
        y = self.norm(y.transpose(1, 2), z.unflatten(-1, (H, -1))).flatten(2)
        return self.out(y), RetNetState(S, tail, state.position + T)

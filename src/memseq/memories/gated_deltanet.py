"""Gated DeltaNet: before it writes under a key it erases what stands there, and a gate lets all of it fade.

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks" (arXiv:2412.06464); the layer as Qwen3-Next has it.

    q, k, v = silu(conv(W x))                                     then q, k to length one, q / sqrt(K)
    a_t     = exp(-e^{A_log} softplus(W_a x + dt_bias))           what a head keeps of its past
    b_t     = strength * sigmoid(W_b x)                           how much of what the key retrieves is replaced
    S_t     = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t
    out     = W_o (w * rms(q_t S_t) * silu(W_z x))                rms over a head

State: S in float32 and the convolution's last inputs, 4 B (H K V + (width - 1) (2 G K + H V)) bytes in float32, at any length.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.conv_heads import ConvHeads, check_delta_heads, check_strength, delta_sizes
from memseq.layers.decay_gate import DecayGate
from memseq.layers.head_norm import NormThenGate, unit
from memseq.layers.linear import Linear
from memseq.ops.linear_attention import delta_chunkwise

__all__ = ["GatedDeltaNetConfig", "GatedDeltaNetMemory", "GatedDeltaNetState"]


class GatedDeltaNetState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNetConfig:
    d_model: int
    n_heads: int = 4  # of values
    n_key_heads: int | None = None  # of queries and keys, each for n_heads / n_key_heads heads of values; None: n_heads
    key_size: int | None = None  # None: d_model / n_heads
    value_size: int | None = None  # None: d_model / n_heads
    conv_width: int = 4
    strength: float = 1.0  # of b_t; up to 2, where a write may turn what it erases around (eigenvalues down to -1)
    norm_eps: float = 1e-6
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_delta_heads(self)
        check_strength(self.strength)
        if self.n_key_heads is not None and (self.n_key_heads < 1 or self.n_heads % self.n_key_heads):
            raise ConfigError(
                f"n_heads={self.n_heads} cannot share n_key_heads={self.n_key_heads} equally; use a divisor of {self.n_heads}"
            )

    def build(self) -> "GatedDeltaNetMemory":
        return GatedDeltaNetMemory(self)


class GatedDeltaNetMemory(Memory[GatedDeltaNetState]):
    def __init__(self, config: GatedDeltaNetConfig) -> None:
        super().__init__()
        self.config = c = config
        H, (self.key_size, self.value_size) = c.n_heads, delta_sizes(c)
        self.heads = ConvHeads(c, n_key_heads=c.n_key_heads, extra=H * self.value_size + 2 * H)  # z, b, a
        self.gate = DecayGate(H, rates=(0.01, 16.0))
        self.norm = NormThenGate(self.value_size, c.norm_eps)
        self.out = Linear(H * self.value_size, c.d_model, bias=False)
        nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5)

    def init_state(self, batch_size: int) -> GatedDeltaNetState:
        return GatedDeltaNetState(self.heads.init_matrix(batch_size), self.heads.conv.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: GatedDeltaNetState) -> tuple[Float[Tensor, "B T D"], GatedDeltaNetState]:
        c, H = self.config, self.config.n_heads
        q, k, v, rest, tail = self.heads(x, state.tail)
        z, b, a = rest.split([H * self.value_size, H, H], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            q, k = self.heads.share(unit(q) * self.key_size**-0.5), self.heads.share(unit(k))
            beta = c.strength * b.to(state.S.dtype).sigmoid().transpose(1, 2)
            log_a = self.gate(a)[1].transpose(1, 2)
            y, S = delta_chunkwise(q, k, v.transpose(1, 2), beta, log_a, state.S, chunk_size=c.chunk_size)
        return self.out(self.norm(y.transpose(1, 2), z.unflatten(-1, (H, -1))).flatten(2)), GatedDeltaNetState(S, tail)

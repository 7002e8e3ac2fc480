"""DeltaNet: a write first takes away what its key retrieves, so that a key that comes again replaces instead of adding.

Source: Schlag, Irie, Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers" (arXiv:2102.11174); the layer as in
Yang et al., "Parallelizing Linear Transformers with the Delta Rule" (arXiv:2406.06484).

    q, k, v = silu(conv(W x))                                     then q, k to length one, q / sqrt(K)
    b_t     = strength * sigmoid(W_b x)                           how much of what the key retrieves is replaced
    S_t     = S_{t-1} + b_t k_t^T (v_t - k_t S_{t-1})
    out     = W_o (w * rms(q_t S_t))                              rms over a head

Nothing fades: with orthonormal keys and b = 1 up to K values are kept exactly, for ever.
State: S in float32 and the convolution's last inputs, 4 B (H K V + (width - 1) H (2 K + V)) bytes in float32, at any length.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.layers.conv_heads import ConvHeads, check_delta_heads, check_strength, delta_sizes
from memseq.layers.head_norm import HeadNorm, unit
from memseq.layers.linear import Linear
from memseq.ops.linear_attention import delta_chunkwise

__all__ = ["DeltaNetConfig", "DeltaNetMemory", "DeltaNetState"]


class DeltaNetState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig:
    d_model: int
    n_heads: int = 4
    key_size: int | None = None  # None: d_model / n_heads
    value_size: int | None = None  # None: d_model / n_heads
    conv_width: int = 4
    strength: float = 1.0  # of b_t; up to 2, where a write may turn what it erases around (eigenvalues down to -1)
    norm_eps: float = 1e-6
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_delta_heads(self)
        check_strength(self.strength)

    def build(self) -> "DeltaNetMemory":
        return DeltaNetMemory(self)


class DeltaNetMemory(Memory[DeltaNetState]):
    def __init__(self, config: DeltaNetConfig) -> None:
        super().__init__()
        self.config = c = config
        H, (self.key_size, self.value_size) = c.n_heads, delta_sizes(c)
        self.heads = ConvHeads(c, extra=H)  # b
        self.norm = HeadNorm(self.value_size, c.norm_eps)
        self.out = Linear(H * self.value_size, c.d_model, bias=False)
        nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5)

    def init_state(self, batch_size: int) -> DeltaNetState:
        return DeltaNetState(self.heads.init_matrix(batch_size), self.heads.conv.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: DeltaNetState) -> tuple[Float[Tensor, "B T D"], DeltaNetState]:
        q, k, v, b, tail = self.heads(x, state.tail)
        with torch.autocast(x.device.type, enabled=False):
            q, k = self.heads.share(unit(q) * self.key_size**-0.5), self.heads.share(unit(k))
            beta = self.config.strength * b.to(state.S.dtype).sigmoid().transpose(1, 2)
            kept = beta.new_zeros(()).expand_as(beta)
            y, S = delta_chunkwise(q, k, v.transpose(1, 2), beta, kept, state.S, chunk_size=self.config.chunk_size)
        return self.out(self.norm(y.transpose(1, 2)).flatten(2).to(x.dtype)), DeltaNetState(S, tail)

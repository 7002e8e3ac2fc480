"""Linear attention: attention whose softmax is a product of features, so that the past is one matrix.

Source: Katharopoulos et al., "Transformers are RNNs" (arXiv:2006.16236); the RMS norm in place of the sum: Qin et al.
(arXiv:2210.10340).

    q, k, v = W x                             q, k through the feature map phi
    S_t     = S_{t-1} + phi(k_t)^T v_t
    z_t     = z_{t-1} + phi(k_t)
    o_t     = phi(q_t) S_t / (phi(q_t) . z_t)         norm "sum"; with norm "rms": w * rms(phi(q_t) S_t / sqrt(K)), and no z
    out     = W_o o_t

Nothing fades and nothing is replaced: keys that are not orthogonal disturb each other more with every token.
State: S and z in float32, 4 B H K (V + 1) bytes.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.head_norm import HeadNorm
from memseq.layers.linear import Linear
from memseq.ops.linear_attention import decay_chunkwise

__all__ = ["LinearAttentionConfig", "LinearAttentionMemory", "LinearAttentionState"]

FEATURES = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "identity": lambda x: x}
TINY = 1e-6  # of the sum of weights: a query that no key answers reads zero


class LinearAttentionState(NamedTuple):
    S: Float[Tensor, "B H K V"]
    z: Float[Tensor, "B H Z"]  # K features; none where the norm is "rms"


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig:
    d_model: int
    n_heads: int = 4
    features: Literal["elu", "relu", "identity"] = "elu"
    norm: Literal["sum", "rms"] = "sum"
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, 0.0)
        if self.features not in FEATURES:
            raise ConfigError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        if self.norm not in ("sum", "rms"):
            raise ConfigError(f"norm must be 'sum' or 'rms', got {self.norm!r}")
        if self.features == "identity" and self.norm == "sum":
            raise ConfigError("features='identity' may be negative, and their sum zero, so that norm='sum' would divide by it; use 'rms'")
        if self.chunk_size < 1:
            raise ConfigError(f"chunk_size must be at least 1, got {self.chunk_size}")

    def build(self) -> "LinearAttentionMemory":
        return LinearAttentionMemory(self)


class LinearAttentionMemory(Memory[LinearAttentionState]):
    def __init__(self, config: LinearAttentionConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.size = D // config.n_heads
        self.inputs = Linear(D, 3 * D, bias=False)  # q, k, v
        self.out = Linear(D, D, bias=False)
        self.norm = HeadNorm(self.size) if config.norm == "rms" else None
        for layer in (self.inputs, self.out):
            nn.init.normal_(layer.weight, std=D**-0.5)

    def init_state(self, batch_size: int) -> LinearAttentionState:
        w, H, K = self.out.weight, self.config.n_heads, self.size
        dtype = torch.promote_types(w.dtype, torch.float32)
        z = w.new_zeros(batch_size, H, K if self.norm is None else 0, dtype=dtype)
        return LinearAttentionState(w.new_zeros(batch_size, H, K, K, dtype=dtype), z)

    def forward(self, x: Float[Tensor, "B T D"], state: LinearAttentionState) -> tuple[Float[Tensor, "B T D"], LinearAttentionState]:
        phi = FEATURES[self.config.features]
        q, k, v = self.inputs(x).unflatten(-1, (3, self.config.n_heads, -1)).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (phi(t.to(state.S.dtype)) for t in (q, k))
            kept = q.new_zeros(()).expand(q.shape[:3])
            y, S = decay_chunkwise(q, k, v, kept, state.S, chunk_size=self.config.chunk_size)
            if self.norm is None:
                sums = k.cumsum(2).add(state.z[:, :, None])
                y = y / ((q * sums).sum(-1, keepdim=True) + TINY)
                z = sums[:, :, -1].clone()
            else:
                y, z = self.norm(y * self.size**-0.5), state.z
        return self.out(y.transpose(1, 2).flatten(2).to(x.dtype)), LinearAttentionState(S, z)

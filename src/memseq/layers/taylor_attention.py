"""The projections around linear attention with Taylor features: queries and keys of few numbers, values of all.

    q, k = W x      H heads of `feature_size` numbers
    v    = W x      H heads of V = D / H
    y    = W_O concat_h(o)

No biases and no norms, as published. What recurs is float32 at least, under autocast as well.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.ops.taylor import feature_count, taylor_chunkwise, taylor_write

__all__ = ["TaylorHeads", "TaylorState", "check_taylor"]


class TaylorState(NamedTuple):
    M: Float[Tensor, "B H F V1"]  # sums of phi(k)^T [v, 1]: V1 = V + 1, the last column is the normaliser


def check_taylor(d_model: int, n_heads: int, feature_size: int, chunk_size: int) -> None:
    """Raise `ConfigError` where the numbers of a layer with Taylor features make no sense."""
    check_heads(d_model, n_heads, 0.0)
    if feature_size < 1:
        raise ConfigError(f"feature_size must be at least 1, got {feature_size}; published is 16, which keeps 153 rows a head")
    if chunk_size < 1:
        raise ConfigError(f"chunk_size must be at least 1, got {chunk_size}")


class TaylorHeads(nn.Module):
    """Tokens into a matrix M [B, H, F, V + 1] and out of it."""

    def __init__(self, d_model: int, n_heads: int, feature_size: int, chunk_size: int) -> None:
        super().__init__()
        self.n_heads, self.chunk_size = n_heads, chunk_size
        self.size = (n_heads, feature_count(feature_size), d_model // n_heads + 1)
        self.query = Linear(d_model, n_heads * feature_size, bias=False)
        self.key = Linear(d_model, n_heads * feature_size, bias=False)
        self.value = Linear(d_model, d_model, bias=False)
        self.out = Linear(d_model, d_model, bias=False)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=d_model**-0.5)

    def init_state(self, batch_size: int) -> TaylorState:
        weight = self.value.weight
        return TaylorState(weight.new_zeros((batch_size, *self.size), dtype=torch.promote_types(weight.dtype, torch.float32)))

    def forward(self, x: Float[Tensor, "B T D"], state: TaylorState) -> tuple[Float[Tensor, "B T D"], TaylorState]:
        """Every token of x is written and reads what was written up to it."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        with torch.autocast(x.device.type, enabled=False):
            y, M = taylor_chunkwise(q, k, v, state.M, chunk_size=self.chunk_size)
        return self.out(y.transpose(1, 2).flatten(2).to(x.dtype)), TaylorState(M)

    def write(
        self, key: nn.Module, value: nn.Module, x: Float[Tensor, "B T D"], state: TaylorState, keep: Bool[Tensor, "B T"] | None = None
    ) -> TaylorState:
        """The tokens of x that `keep` names (all where it is None) are written by the keys and values given; nothing is read."""
        k, v = self._split(key(x)), self._split(value(x))
        with torch.autocast(x.device.type, enabled=False):
            return TaylorState(taylor_write(k, v, state.M, keep, chunk_size=self.chunk_size))

    def _split(self, z: Tensor) -> Tensor:
        return z.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

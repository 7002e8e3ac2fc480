"""Queries, keys and values of the modern linear layers: one projection, a short convolution, SiLU, heads.

    q, k, v, rest = W x
    q, k, v       = silu(conv(q, k, v))          causal; its tail is the caller's to carry

Queries and keys may have fewer heads than values (grouped values, as in Qwen3-Next): each then serves that many value heads, side by
side. `rest` is whatever else the layer reads from x: gates, strengths.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.layers.sizes import check_at_least_one

__all__ = ["ConvHeads", "check_delta_heads", "check_strength", "delta_sizes"]


def check_delta_heads(config: Any) -> None:
    """Raise `ConfigError` where the numbers of a layer of the delta rule make no sense."""
    check_at_least_one(config, "d_model", "n_heads", "conv_width", "chunk_size")
    for name in ("key_size", "value_size"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, or None for its default, got {getattr(config, name)}")
    if (config.key_size is None or config.value_size is None) and config.d_model % config.n_heads:
        near = config.n_heads * -(-config.d_model // config.n_heads)
        raise ConfigError(
            f"d_model={config.d_model} cannot be split into n_heads={config.n_heads} equal heads; give key_size and value_size,"
            f" or use a multiple of {config.n_heads}, such as d_model={near}"
        )


def delta_sizes(config: Any) -> tuple[int, int]:
    """Channels of a key and of a value of one head: what the config says, else d_model / n_heads."""
    each = config.d_model // config.n_heads
    return config.key_size or each, config.value_size or each


def check_strength(strength: float) -> None:
    """Raise `ConfigError` unless a delta rule with writes of up to this strength is stable."""
    if not 0 < strength <= 2:
        raise ConfigError(f"strength must lie in (0, 2]: beyond 2 a write grows without end, got {strength}")


class ConvHeads(nn.Module):
    """`q, k, v, rest, tail = heads(x, tail)` with q, k [B, T, G, K], v [B, T, H, V] and rest [B, T, extra]."""

    def __init__(self, config: Any, *, extra: int, n_key_heads: int | None = None) -> None:
        super().__init__()
        c, (self.key_size, self.value_size) = config, delta_sizes(config)
        self.n_heads, self.n_key_heads, self.extra = c.n_heads, n_key_heads or c.n_heads, extra
        self.sizes = [self.n_key_heads * self.key_size, self.n_key_heads * self.key_size, self.n_heads * self.value_size]
        self.inputs = Linear(c.d_model, sum(self.sizes) + extra, bias=False)
        self.conv = ShortConv(sum(self.sizes), c.conv_width, silu=True)
        nn.init.normal_(self.inputs.weight, std=c.d_model**-0.5)

    def forward(
        self, x: Float[Tensor, "B T D"], tail: Float[Tensor, "B W C"]
    ) -> tuple[
        Float[Tensor, "B T G K"], Float[Tensor, "B T G K"], Float[Tensor, "B T H V"], Float[Tensor, "B T extra"], Float[Tensor, "B W C"]
    ]:
        mixed, rest = self.inputs(x).split([sum(self.sizes), self.extra], dim=-1)
        mixed, tail = self.conv(mixed, tail)
        q, k, v = mixed.split(self.sizes, dim=-1)
        q, k = (t.unflatten(-1, (self.n_key_heads, -1)) for t in (q, k))
        return q, k, v.unflatten(-1, (self.n_heads, -1)), rest, tail

    def init_matrix(self, batch_size: int) -> Float[Tensor, "B H K V"]:
        """Of a stream that has read nothing, in float32 at least."""
        w = self.inputs.weight
        size = (batch_size, self.n_heads, self.key_size, self.value_size)
        return w.new_zeros(size, dtype=torch.promote_types(w.dtype, torch.float32))

    def share(self, keys: Float[Tensor, "B T G K"]) -> Float[Tensor, "B H T K"]:
        """Queries or keys for every value head, in the order of the ops."""
        each = self.n_heads // self.n_key_heads
        return (keys if each == 1 else torch.repeat_interleave(keys, each, dim=2)).transpose(1, 2)

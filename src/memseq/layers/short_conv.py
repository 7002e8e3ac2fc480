"""Short convolution: every channel mixed with its own last few values, causally.

Source: the depthwise convolution of H3 (Fu et al., arXiv:2212.14052) and Mamba (Gu and Dao, arXiv:2312.00752), as linear-attention
layers use it before their keys, queries and values.

    y_t = sum_i w_i x_{t-width+1+i} (+ b)       per channel; x before the stream's first token is zero
    y_t = silu(y_t)                             where `silu` is set

State: the last width - 1 inputs, the caller's to carry. Computed by `ops/short_conv.py`.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import empty
from memseq.errors import ConfigError
from memseq.ops.short_conv import short_conv, short_conv_silu

__all__ = ["ShortConv"]


class ShortConv(nn.Module):
    """`y, tail = conv(x, tail)` with x, y [B, T, C] and tail [B, width - 1, C]: the inputs before x, newest last."""

    def __init__(self, channels: int, width: int = 4, *, bias: bool = False, silu: bool = False) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"a short convolution has a width of at least 1, got {width}")
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.op = short_conv_silu if silu else short_conv
        nn.init.uniform_(self.weight, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def init_tail(self, batch_size: int) -> Float[Tensor, "B W C"]:
        """What was read before the first token: nothing."""
        return empty(self.weight, batch_size, self.width - 1, self.weight.shape[0])

    def forward(self, x: Float[Tensor, "B T C"], tail: Float[Tensor, "B W C"]) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B W C"]]:
        return self.op(x, tail, self.weight, self.bias), self.shift(x, tail)

    def shift(self, x: Float[Tensor, "B T C"], tail: Float[Tensor, "B W C"]) -> Float[Tensor, "B W C"]:
        """The tail after x. It keeps the dtype it came in, so that a state is the same tree under autocast."""
        T, kept = x.shape[1], self.width - 1
        if T < kept:
            return torch.cat([tail[:, T:], x.to(tail.dtype)], dim=1)
        return x[:, T - kept :].to(tail.dtype, copy=True)  # copy: a view would keep all of x

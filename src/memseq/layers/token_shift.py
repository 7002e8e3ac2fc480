"""Token shift: what RWKV reads is a mixture of a token and the one before it, another mixture for every use.

Source: RWKV (Peng et al., arXiv:2305.13048), as RWKV-6 (arXiv:2404.05892) and RWKV-7 (arXiv:2503.14456) have it.

    before_t = x_(t-1) - x_t           x before the stream's first token is zero
    mixed    = x_t + before_t mu       per channel

State: the last token's x, the caller's to carry.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.layers.linear import Linear

__all__ = ["LowRank", "Shifted", "shift"]


class Shifted(NamedTuple):
    before: Float[Tensor, "B T D"]  # the token before, less the token
    last: Float[Tensor, "B D"]  # what to carry: in the dtype it came in


def shift(x: Float[Tensor, "B T D"], last: Float[Tensor, "B D"]) -> Shifted:
    """The difference to the token before, and the last token to carry."""
    previous = torch.cat([last[:, None].to(x.dtype), x[:, :-1]], dim=1)
    return Shifted(previous - x, x[:, -1].to(last.dtype, copy=True))  # copy: a view would keep all of x


class LowRank(nn.Module):
    """W_2 f(W_1 x) (+ b): W_1 starts at zero and W_2 small, so that the bias alone speaks at first."""

    def __init__(self, d_in: int, d_out: int, rank: int, *, squash: nn.Module | None = None, bias: bool = True) -> None:
        super().__init__()
        self.down = Linear(d_in, rank, bias=False)
        self.squash = squash if squash is not None else nn.Identity()
        self.up = Linear(rank, d_out, bias=bias)
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, gain=0.1 * max(1.0, rank / d_out) ** 0.5)
        if bias:
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        return self.up(self.squash(self.down(x)))

"""How a stream is cut into chunks, and the decays inside one; and which form of a linear recurrence reads how many tokens.

Sums of logarithms start anew in every chunk, so that no exponential is ever above one.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["causal_gates", "form_for", "gate_gradient", "lengths", "within_chunks"]


def form_for(n_tokens: int, chunk_size: int) -> Literal["recurrent", "chunkwise"]:
    """The form in which `*_chunkwise` reads a piece of a stream: the one place where that is decided.

    >>> form_for(1, chunk_size=64), form_for(2, chunk_size=64), form_for(2048, chunk_size=1)
    ('recurrent', 'chunkwise', 'recurrent')
    """
    return "recurrent" if min(n_tokens, chunk_size) == 1 else "chunkwise"


def lengths(n_tokens: int, chunk_size: int) -> list[int]:
    """The lengths of the chunks; the last is as short as what is left.

    >>> lengths(10, 4)
    [4, 4, 2]
    """
    return [chunk_size] * (n_tokens // chunk_size) + ([n_tokens % chunk_size] if n_tokens % chunk_size else [])


def within_chunks(log_a: Float[Tensor, "B H T"], pieces: list[int]) -> Float[Tensor, "B H T"]:
    """c_t: the sum of log_a from the first token of t's chunk up to t."""
    L, T = pieces[0], log_a.shape[-1]
    whole = T - T % L
    sums = log_a[..., :whole].unflatten(-1, (-1, L)).cumsum(-1).flatten(-2)
    return sums if whole == T else torch.cat([sums, log_a[..., whole:].cumsum(-1)], dim=-1)


def causal_gates(c: Float[Tensor, "*N L"]) -> Float[Tensor, "*N L L"]:
    """G_tj = exp(c_t - c_j) for j <= t, else 0. The mask comes before the exponential, which would overflow above the diagonal."""
    above = torch.full((c.shape[-1],) * 2, -torch.inf, dtype=c.dtype, device=c.device).triu_(1)
    return (c[..., :, None] - c[..., None, :]).add_(above).exp_()


def gate_gradient(
    inside: Float[Tensor, "N L L"], reads: Float[Tensor, "N L"], writes: Float[Tensor, "N L"], kept: Float[Tensor, "N"]
) -> Float[Tensor, "N L"]:
    """The gradient of log_a, from how much of the loss each path through the chunk carries.

        inside [t, j]     what t reads of what j wrote: passes the gates j + 1 .. t
        reads [t]         what t reads of the matrix at the start: passes the gates up to t
        writes [j]        what j leaves in the matrix at the end: passes the gates after j
        kept              what the matrix at the end has from the start: passes all gates

    Only paths that pass a gate are summed into its gradient. The usual shorter way, a difference of two sums over all paths, leaves
    their rounding where a gate is shut and the gradient is nothing; an optimiser that divides by its size would follow that noise.
    """
    up_to = torch.ones_like(inside[0]).tril_()  # [i, t]: t <= i
    across = torch.bmm(up_to.mT.expand_as(inside), inside).tril_(-1).sum(-1)
    return (reads @ up_to).add_(writes @ (1 - up_to)).add_(across).add_(kept[:, None])

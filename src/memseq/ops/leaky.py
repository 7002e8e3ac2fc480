"""Leaky recurrent cells: every unit has a time constant of its own.

Source: Khajehabdollahi et al., "Emergent mechanisms for long timescales depend on training curriculum" (arXiv:2309.12927).

    inside     r_t = phi((1 - 1/tau) r_{t-1} + (1/tau) (W r_{t-1} + a_t))
    outside    r_t = (1 - 1/tau) r_{t-1} + (1/tau) phi(W r_{t-1} + a_t)

a_t is what the token contributes, tau >= 1, and no unit feeds itself: the diagonal of W counts as zero. tau = 1 is Elman's network.
With the leak inside, phi sees what is kept as well, so that a unit below zero is squeezed at every token however large its tau is;
outside, tau alone says how a unit fades. `substeps` tokens of a finer clock: the token is held k steps of tau k.

The leak inside is linear under phi, so that it folds into the weights: `leak_inside_folded` is one product a token.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["leak_inside_cell", "leak_inside_folded", "leak_outside_cell", "without_self"]

Hidden = Float[Tensor, "B H"]
Squash = Callable[[Tensor], Tensor]


def without_self(w: Float[Tensor, "H H"]) -> Float[Tensor, "H H"]:
    """W with a zero diagonal, which gets no gradient."""
    return w.masked_fill(torch.eye(len(w), dtype=torch.bool, device=w.device), 0.0)


def leak_inside_cell(
    a: Float[Tensor, "B H"], carry: tuple[Hidden], *, w: Float[Tensor, "H H"], tau: Float[Tensor, "H"], phi: Squash
) -> tuple[Hidden]:
    """The definition; `w` as `without_self` gives it."""
    (r,) = carry
    return (phi((1 - 1 / tau) * r + (F.linear(r, w) + a) / tau),)


def leak_outside_cell(
    a: Float[Tensor, "B H"], carry: tuple[Hidden], *, w: Float[Tensor, "H H"], tau: Float[Tensor, "H"], phi: Squash, substeps: int = 1
) -> tuple[Hidden]:
    """The definition, `substeps` times with tau as many times as long."""
    (r,) = carry
    share = 1 / (tau * substeps)
    for _ in range(substeps):
        r = r + share * (phi(F.linear(r, w) + a) - r)
    return (r,)


def leak_inside_folded(
    a: Float[Tensor, "B T H"], r: Hidden, *, w: Float[Tensor, "H H"], tau: Float[Tensor, "H"], phi: Squash
) -> tuple[Float[Tensor, "B T H"], Hidden]:
    """Equal to a scan over `leak_inside_cell`: r_t = phi(V r_{t-1} + a_t / tau) with V = 1 - 1/tau + W / tau."""
    v = (w / tau[:, None] + torch.diag(1 - 1 / tau)).mT
    read = []
    for a_t in (a / tau).unbind(1):
        r = phi(torch.addmm(a_t, r, v))
        read.append(r)
    return torch.stack(read, dim=1), r

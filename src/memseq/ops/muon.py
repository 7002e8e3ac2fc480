"""Muon for a memory that descends at every token: orthogonal steps, and no weights by token.

Source: ATLAS (Behrouz et al., arXiv:2505.23735); the form is ours. Inside a chunk the momentum of one matrix is linear in the E gradients
x_e^T g_e that its tokens listen to (`ops/omega.py`), whatever the weights do meanwhile:

    S_t = c_t S_0 + X^T diag(D_t) g
    W_t = beta_t W_0 - sum over s <= t of N_ts NS(S_s),   NS(S) = S root(S^T S)              `ops/newton_schulz.py`

The root stands on the side of the matrix that is the shorter; let it be that of g (else X and g change places, S_0 is transposed, and roots
multiply from the left). With P_s = diag(D_s) g,

    q S_s                      = c_s q S_0 + (q X^T) P_s                                     a read
    sum_s N_Ls S_s root_s      = S_0 sum_s N_Ls c_s root_s + X^T sum_s N_Ls P_s root_s       the chunk's end

so a token costs one Gram matrix, one root of the shorter side, and products with it. S_s itself is formed for its Gram matrix alone, a few
at a time, and anew for the gradient: a sum of the factors' own Gram matrices would need no S_s, and lose what is small to rounding.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.ops.fast_network import Factors
from memseq.ops.newton_schulz import Root
from memseq.ops.precision import unrounded

__all__ = ["Momenta", "momenta", "moved_by_muon", "read_by_muon"]

BLOCK = 1 << 17  # numbers of S that are formed at a time: what a core's own cache holds


class Momenta(NamedTuple):
    """S_1 ... S_L of one matrix, in parts; n is the shorter of its sides."""

    of: Factors
    before: Float[Tensor, "B H I O"] | None  # S_0
    carried: Float[Tensor, "B H L"] | None  # c
    parts: Float[Tensor, "B H E L n"]  # P_s
    roots: Float[Tensor, "B H L n n"]

    @property
    def from_left(self) -> bool:
        """Whether roots multiply from the left."""
        return self.of.inputs.shape[-1] < self.of.errors.shape[-1]


def momenta(
    of: Factors,
    before: Float[Tensor, "B H I O"] | None,
    carried: Float[Tensor, "B H L"] | None,
    counts: Float[Tensor, "B H L E"],
    steps: int,
) -> Momenta:
    """S_t = carried_t `before` + the sum of `counts` times gradients, for every t."""
    other, near, start = *of, before
    if other.shape[-1] < near.shape[-1]:
        other, near, start = near, other, None if before is None else before.mT
    parts = counts.mT[..., None] * near[:, :, :, None]
    n = near.shape[-1]
    if steps:
        roots = _Roots.apply(*(None if z is None else z.flatten(0, 1) for z in (other, near, start, carried, counts)), steps)
        roots = roots.unflatten(0, near.shape[:2])
    else:
        roots = torch.eye(n, dtype=near.dtype, device=near.device).expand(*counts.shape[:3], n, n)
    return Momenta(of, before, carried, parts, roots)


def read_by_muon(
    q: Float[Tensor, "B H L I"], W: Float[Tensor, "B H I O"], S: Momenta, kept: Float[Tensor, "B H L"], taken: Float[Tensor, "B H L L"]
) -> Float[Tensor, "B H L O"]:
    """q_t W_t; `kept` is beta and `taken` N."""
    parts, X, g = S.parts.flatten(-2), *S.of
    said = (kept[..., None] * q) @ W
    if S.from_left:
        through = (q @ _columns(S.roots)).unflatten(-1, S.parts.shape[-2:]) * taken[..., None]  # [B, H, L, L, I]
        stepped = (through.flatten(-2) @ parts.mT) @ g
        if S.before is not None and S.carried is not None:
            stepped = stepped + (S.carried[:, :, None, None] @ through)[..., 0, :] @ S.before
        return said - stepped
    through = ((q @ X.mT) @ parts).unflatten(-1, S.parts.shape[-2:])
    if S.before is not None and S.carried is not None:
        through = through + S.carried[:, :, None, :, None] * (q @ S.before)[..., None, :]
    return said - (through * taken[..., None]).flatten(-2) @ S.roots.flatten(2, 3)


def moved_by_muon(
    W: Float[Tensor, "B H I O"], S: Momenta, kept: Float[Tensor, "B H"], taken: Float[Tensor, "B H L"], last: Float[Tensor, "B H E"]
) -> tuple[Float[Tensor, "B H I O"], Float[Tensor, "B H I O"] | None]:
    """W_L and S_L: `kept` and `taken` are the last rows of beta and N, `last` that of the counts."""
    X, g = S.of
    weighted = (S.parts * taken[:, :, None, :, None]).flatten(-2)
    stepped = (_columns(S.roots) @ weighted.mT) @ g if S.from_left else X.mT @ (weighted @ S.roots.flatten(2, 3))
    end = None
    if S.before is not None and S.carried is not None:
        root = ((taken * S.carried)[:, :, None] @ S.roots.flatten(3)).unflatten(-1, S.roots.shape[-2:])[:, :, 0]
        stepped = stepped + (root @ S.before if S.from_left else S.before @ root)
        end = S.carried[:, :, -1, None, None] * S.before + (X * last[..., None]).mT @ g
    return kept[..., None, None] * W - stepped, end


def _columns(roots: Float[Tensor, "B H L n n"]) -> Float[Tensor, "B H n Ln"]:
    """Roots side by side; each is symmetric."""
    return roots.movedim(2, 3).flatten(-2)


class _Roots(torch.autograd.Function):
    """root(S_t^T S_t) of every token, S_t = c_t S_0 + X^T diag(D_t) g, formed a few at a time and again for the gradient."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, g: Tensor, S_0: Tensor | None, c: Tensor | None, D: Tensor, steps: int) -> Tensor:
        rows, size = _rows_at_a_time(X, g, D), (*D.shape[:2], g.shape[-1])
        found = g.new_empty(*size, size[-1])
        root = Root(torch.empty_like(found), g.new_empty(size), g.new_empty(size), g.new_empty(*size[:2], 1))
        for (X_i, g_i, S_i, c_i, D_i), parts in zip(_blocks(rows, X, g, S_0, c, D), _blocks(rows, found, *root), strict=True):
            S = _formed(X_i, _parts(g_i, D_i), S_i, c_i).movedim(2, 1)
            root_i = Root.of(S.mT @ S, steps)
            for whole, part in zip(parts, (root_i.matrix(), *root_i), strict=True):
                whole.copy_(part)
        ctx.steps = steps
        ctx.save_for_backward(X, g, S_0, c, D, *root)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        with unrounded(d):
            return *_Roots.gradients(ctx.saved_tensors, ctx.steps, d), None

    @staticmethod
    def gradients(saved: Any, steps: int, d: Tensor) -> tuple[Tensor | None, ...]:
        X, g, S_0, c, D, *root = saved
        rows, found = _rows_at_a_time(X, g, D), []
        for (X_i, g_i, S_i, c_i, D_i), (d_i, *root_i) in zip(_blocks(rows, X, g, S_0, c, D), _blocks(rows, d, *root), strict=True):
            d_A = Root(*root_i).back(d_i, steps)
            P = _parts(g_i, D_i)
            S = _formed(X_i, P, S_i, c_i)  # [m, I, L, O], as its gradient below
            d_S = (S.movedim(2, 1) @ d_A.mul_(2)).movedim(1, 2).contiguous()
            d_P = (X_i @ d_S.flatten(-2)).view_as(P)
            d_X = P.flatten(-2) @ d_S.flatten(-2).mT
            d_g, d_D = (d_P * D_i.mT[..., None]).sum(2), (d_P * g_i[:, :, None]).sum(-1).mT
            d_S_0 = d_c = None
            if S_i is not None and c_i is not None:
                d_c = (d_S * S_i[:, :, None]).sum((1, 3))
                d_S_0 = d_S.mul_(c_i[:, None, :, None]).sum(2)
            found.append((d_X, d_g, d_S_0, d_c, d_D))
        return tuple(None if z[0] is None else torch.cat(z) for z in zip(*found, strict=True))


def _rows_at_a_time(X: Tensor, g: Tensor, D: Tensor) -> int:
    """Heads whose momenta are formed together."""
    return max(1, BLOCK // (D.shape[1] * X.shape[-1] * g.shape[-1]))


def _blocks(rows: int, *tensors: Tensor | None) -> Any:
    count = -(-len(next(t for t in tensors if t is not None)) // rows)
    return zip(*([None] * count if t is None else t.split(rows) for t in tensors), strict=True)


def _parts(g: Float[Tensor, "M E O"], D: Float[Tensor, "M L E"]) -> Float[Tensor, "M E L O"]:
    """P_t = diag(D_t) g."""
    return D.mT[..., None] * g[:, :, None]


def _formed(X: Tensor, P: Tensor, S_0: Tensor | None, c: Tensor | None) -> Float[Tensor, "M I L O"]:
    """S_t = c_t S_0 + X^T P_t."""
    S = (X.mT @ P.flatten(-2)).unflatten(-1, P.shape[-2:])
    return S if S_0 is None or c is None else S.addcmul_(c[:, None, :, None], S_0[:, :, None])

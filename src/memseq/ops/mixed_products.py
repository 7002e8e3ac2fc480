"""Products with weights that differ by token, none of which is formed: the dual form's sums in place, with their gradients.

Source: the dual form of `docs/systems/titans.md`. W and S are weights and momentum at a chunk's start, u_j = X_j^T g_j its gradients:

    MixedProduct       Z_t W_t    = beta_t Z_t W + f_t Z_t S - sum_j G_tj (Z_t . X_j) g_j
    Moved              W_L, S_L   = beta W + f S - sum_j G_j u_j,   m S - sum_j A_j u_j
    Stepped            S', W'     = eta S - sum_j theta_j u_j,   keep W + S'
    SquaredGradient    |u_j|^2    = |X_j|^2 |g_j|^2

Of a product's two sides the narrower is scaled by token: on a processor a pass over the wider one costs a good part of the product.
All are differentiable once.
"""

from typing import Any

import torch
from torch import Tensor

from memseq.ops.precision import unrounded

__all__ = ["MixedProduct", "Moved", "SquaredGradient"]


class MixedProduct(torch.autograd.Function):
    """beta (X W) + f (X S) - ((X Y^T) * G) g, all products summed in place; its backward keeps X Y^T and scales anew.

    What is scaled by token is the narrower of X and the product: a pass over the wider one costs as much as a product.
    """

    @staticmethod
    def forward(ctx: Any, X, W, S, Y, g, beta, f, G) -> Tensor:
        scores = X @ Y.mT
        if X.shape[-1] <= W.shape[-1]:
            said: list[Tensor] = []
            out = (X * beta[..., None]) @ W
            if S is not None:
                _add(out, X * f[..., None], S)
        else:
            said = [X @ W] if S is None else [X @ W, X @ S]
            out = said[0] * beta[..., None]
            for said_S in said[1:]:
                out.addcmul_(said_S, f[..., None])
        ctx.save_for_backward(X, W, S, Y, g, beta, f, G, scores, *said)
        return _add(out, scores * G, g, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        with unrounded(d):
            return MixedProduct.gradients(ctx.saved_tensors, d.contiguous())

    @staticmethod
    def gradients(saved: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        X, W, S, Y, g, beta, f, G, scores, *said = saved
        d_X, d_W, d_beta = _back(d, X, W, beta, *said[:1])
        d_S = d_f = None
        if S is not None:
            d_X, d_S, d_f = _back(d, X, S, f, *said[1:], onto=d_X)
        d_P = d @ g.mT  # of minus P = scores * G
        d_g = ((scores * G).mT @ d).neg_()
        d_G = (d_P * scores).neg_()
        d_scores = d_P.mul_(G).neg_()
        return _add(d_X, d_scores, Y), d_W, d_S, d_scores.mT @ X, d_g, d_beta, d_f, d_G


def _back(
    d: Tensor, X: Tensor, W: Tensor, scale: Tensor, said: Tensor | None = None, onto: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scale (X W) in X, added to `onto`, in W and in the scale. `said` is X W where that is the narrower."""
    if said is not None:
        scaled = d * scale[..., None]
        d_X = scaled @ W.mT if onto is None else _add(onto, scaled, W.mT)
        return d_X, X.mT @ scaled, (d * said).sum(-1)
    d_scaled = d @ W.mT
    d_scale = (d_scaled * X).sum(-1)
    d_scaled.mul_(scale[..., None])
    return d_scaled if onto is None else onto.add_(d_scaled), (X * scale[..., None]).mT @ d, d_scale


class Moved(torch.autograd.Function):
    """beta W + f S - (X * G)^T g, and m S - (X * A)^T g, with the sums made in place; scaled is the narrower of X and g."""

    @staticmethod
    def forward(ctx: Any, W, S, X, g, beta, f, G, m, A) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(W, S, X, g, beta, f, G, m, A)
        W_end = W * beta[..., None, None]
        if S is None:
            return _less(W_end, X, g, G), None
        W_end.addcmul_(S, f[..., None, None])
        return _less(W_end, X, g, G), _less(S * m[..., None, None], X, g, A)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_W_end: Any, d_S_end: Any) -> tuple[Tensor | None, ...]:  # d_S_end is None without S
        with unrounded(d_W_end):
            return Moved.gradients(ctx.saved_tensors, d_W_end, d_S_end)

    @staticmethod
    def gradients(saved: Any, d_W_end: Tensor, d_S_end: Any) -> tuple[Tensor | None, ...]:
        W, S, X, g, beta, f, G, m, A = saved
        d_X, d_g, d_G = _back_sum(X, g, G, d_W_end)
        d_W, d_beta = d_W_end * beta[..., None, None], _dot(d_W_end, W)
        if S is None:
            return d_W, None, d_X.neg_(), d_g.neg_(), d_beta, None, d_G, None, None
        d_X, d_g, d_A = _back_sum(X, g, A, d_S_end, onto=(d_X, d_g))
        d_S = (d_W_end * f[..., None, None]).addcmul_(d_S_end, m[..., None, None])
        return d_W, d_S, d_X.neg_(), d_g.neg_(), d_beta, _dot(d_W_end, S), d_G, _dot(d_S_end, S), d_A


class Stepped(torch.autograd.Function):
    """W' = keep W + S' and S' = eta S - (X * theta)^T g; `keep` None is 1, S or `eta` None is 0."""

    @staticmethod
    def forward(ctx: Any, W, S, X, g, theta, keep, eta) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(W, S, X, g, theta, keep, eta)
        ctx.set_materialize_grads(False)
        S_end = _less(torch.zeros_like(W) if eta is None else S * eta[..., None, None], X, g, theta)
        return W + S_end if keep is None else torch.addcmul(S_end, W, keep[..., None, None]), S_end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_W_end: Any, d_S_end: Any) -> tuple[Tensor | None, ...]:
        d = d_W_end if d_S_end is None else d_S_end if d_W_end is None else d_W_end + d_S_end
        if d is None:
            return (None,) * 7
        with unrounded(d):
            return Stepped.gradients(ctx.saved_tensors, d_W_end, d)

    @staticmethod
    def gradients(saved: Any, d_W_end: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        W, S, X, g, theta, keep, eta = saved
        d_X, d_g, d_theta = _back_sum(X, g, -theta, d)
        d_W, d_keep = d_W_end, None
        if keep is not None and d_W_end is not None:
            d_W, d_keep = d_W_end * keep[..., None, None], _dot(d_W_end, W)
        d_S, d_eta = (None, None) if eta is None else (d * eta[..., None, None], _dot(d, S))
        return d_W, d_S, d_X, d_g, d_theta, d_keep, d_eta


def _back_sum(X: Tensor, g: Tensor, G: Tensor, d: Tensor, onto: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (X * G)^T g in X and g, added to `onto`, and of minus that in G."""
    if X.shape[-1] <= g.shape[-1]:
        d_X, scaled = g @ d.mT, X * G[..., None]
        d_G = (d_X * X).sum(-1).neg_()
        d_X.mul_(G[..., None])
        return (d_X, scaled @ d, d_G) if onto is None else (onto[0].add_(d_X), _add(onto[1], scaled, d), d_G)
    d_g, scaled = X @ d, g * G[..., None]
    d_G = (d_g * g).sum(-1).neg_()
    d_g.mul_(G[..., None])
    return (scaled @ d.mT, d_g, d_G) if onto is None else (_add(onto[0], scaled, d.mT), onto[1].add_(d_g), d_G)


def _less(W: Tensor, X: Tensor, g: Tensor, G: Tensor) -> Tensor:
    """W - (X * G)^T g, in W."""
    if X.shape[-1] <= g.shape[-1]:
        return _add(W, (X * G[..., None]).mT, g, -1)
    return _add(W, X.mT, g * G[..., None], -1)


def _add(out: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """out + scale a b, in out."""
    out.flatten(0, -3).baddbmm_(a.flatten(0, -3), b.flatten(0, -3), alpha=scale)
    return out


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of matrices."""
    return (a * b).sum((-1, -2))


class SquaredGradient(torch.autograd.Function):
    """|X|^2 |g|^2 of every row."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, g: Tensor) -> Tensor:
        x, e = (torch.linalg.vector_norm(z, dim=-1).square_() for z in (X, g))
        ctx.save_for_backward(X, g, x, e)
        return x * e

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        X, g, x, e = ctx.saved_tensors
        return X * (2 * d * e)[..., None], g * (2 * d * x)[..., None]

"""What the chunk forms of a memory with a decay per channel are made of: scores, a unit triangular solve, a scan of states.

Source: Gated Linear Attention (Yang et al., arXiv:2312.06635) for scores under a decay per channel; the halving is this library's.

    A_ij = sum_d x_id y_jd exp(c_(i-1)d - c_jd)   for j < i,       c_t = log w_1 + ... + log w_t   inside one chunk

Pairs of tokens are split by the middle of the smallest block that holds both: in blocks of 2, 4, ..., L tokens, the second half's x
has faded since the middle, the first half's y until the middle, and one product gives the scores of all pairs of the two halves.
Then both are carried to the borders of their block by the decay of the other half. Every factor is a product of decays, at most 1:
nothing overflows whatever the gates say, what underflows is zero, and no logarithm is subtracted. A token costs log2 L products of
its vectors with a decay, where exact blocks of 16 x 16 x K cost 8 exponentials a channel below the diagonal alone.

The backward pass keeps the inputs and nothing else; it climbs the same blocks again. The gradient of a decay is counted, not traced:
what comes after t gains x . dx from it, what comes before loses y . dy.

Letters: n chunks of L tokens (L a power of two), R and P vectors a token on the two sides, K channels, V values.
"""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

__all__ = ["decayed_scores", "dense_scan", "diagonal_scan", "unit_solve"]

GROUP = 1 << 17  # numbers of one vector that are climbed together: what stays near the processor


def decayed_scores(
    xs: list[Float[Tensor, "*n L K"]], ys: list[Float[Tensor, "*n L K"]], log_w: Float[Tensor, "*n L K"], *, inclusive: tuple[bool, ...]
) -> tuple[Float[Tensor, "m R P L L"], Float[Tensor, "m L R K"], Float[Tensor, "m L P K"], Float[Tensor, "m K"]]:
    """The scores of every x with every y; x carried to the chunk's start, y to its end; and the decay of the whole chunk.

    Where `inclusive` holds for an x, it has seen its own token's decay and pairs with its own token: exp(c_i - c_j), j <= i.
    The axes before the last two are chunks, flattened in what is returned.
    """
    return _Scores.apply(log_w, inclusive, *xs, *ys)


class _Scores(Function):
    @staticmethod
    def forward(ctx: Any, log_w: Tensor, inclusive: tuple[bool, ...], *vectors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(log_w, *vectors)
        ctx.inclusive = inclusive
        R, P, (L, K) = len(inclusive), len(vectors) - len(inclusive), log_w.shape[-2:]
        n = prod(log_w.shape[:-2])
        A, x, y, end = log_w.new_zeros(n, R, P, L, L), log_w.new_empty(n, L, R, K), log_w.new_empty(n, L, P, K), log_w.new_empty(n, K)
        for part, rows in _groups(log_w):
            A_part, x_part, y_part = A[rows], x[rows], y[rows]
            decay = _fade(vectors, log_w, part, inclusive, x_part, y_part)
            for r, p in _own(inclusive, P):
                pairs = (vectors[r][part] * vectors[R + p][part]).sum(-1)
                A_part[:, r, p].diagonal(dim1=1, dim2=2).copy_(pairs.reshape(-1, L))
            m = 1
            while m < L:
                x_late, y_early, below = _halves(x_part, m)[1], _halves(y_part, m)[0], _below(A_part, m)
                below.copy_((x_late @ y_early.mT).view(below.shape))
                first, second = decay.view(-1, 2, 1, K).unbind(1)
                x_late.mul_(first)
                y_early.mul_(second)
                decay, m = first * second, 2 * m
            end[rows] = decay.view(-1, K)
        return A, x, y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dA: Tensor, dx_start: Tensor, dy_end: Tensor, d_end: Tensor) -> tuple[Any, ...]:
        log_w, *vectors = ctx.saved_tensors
        inclusive, R, P, (L, K) = ctx.inclusive, dx_start.shape[2], dy_end.shape[2], log_w.shape[-2:]
        dA, shape, n = dA.contiguous(), log_w.shape, len(dA)
        dx, dy, d_log_w = dA.new_zeros(n, L, R, K), dA.new_zeros(n, L, P, K), torch.empty_like(log_w, memory_format=torch.contiguous_format)
        for part, rows in _groups(log_w):
            dA_part, dx_part, dy_part = dA[rows], dx[rows], dy[rows]
            x, y = torch.empty_like(dx_part), torch.empty_like(dy_part)
            w = decay = _fade(vectors, log_w, part, inclusive, x, y)
            before, after = (x.new_ones(len(x), L, 1, K) for _ in range(2))  # decays from a block's start, and to its end
            into_x, into_y = x.new_empty(len(x) * L // 2, R, K), y.new_empty(len(y) * L // 2, P, K)
            m = 1
            while m < L:
                x_late, y_early, late, early = _halves(x, m)[1], _halves(y, m)[0], _halves(before, m)[1], _halves(after, m)[0]
                d = _below(dA_part, m).reshape(-1, m * R, m * P)
                torch.bmm(d, y_early, out=into_x.view(-1, m * R, K))
                torch.bmm(d.mT, x_late, out=into_y.view(-1, m * P, K))
                _halves(dx_part, m)[1].unflatten(1, (m, R)).addcmul_(into_x.view(-1, m, R, K), late[:, :, None])
                _halves(dy_part, m)[0].unflatten(1, (m, P)).addcmul_(into_y.view(-1, m, P, K), early[:, :, None])
                first, second = decay.view(-1, 2, 1, K).unbind(1)
                for t in (x_late, late):
                    t.mul_(first)
                for t in (y_early, early):
                    t.mul_(second)
                decay, m = first * second, 2 * m
            dx_part.addcmul_(dx_start[rows], before)
            dy_part.addcmul_(dy_end[rows], after)
            at_end = (y * dy_end[rows]).sum((1, 2)) + decay.view(-1, K) * d_end[rows]
            # after each token: what x gains and y loses by a decay before it; `own` is the part of the token's own decay
            gained, own = torch.zeros_like(w), at_end[:, None].expand(w.shape).contiguous()
            for r, t in enumerate(vectors[:R]):
                if inclusive[r]:
                    dx_part[:, :, r].mul_(w)
                    own.addcmul_(t[part].reshape(w.shape), dx_part[:, :, r])
                gained.addcmul_(t[part].reshape(w.shape), dx_part[:, :, r])
            for p, t in enumerate(vectors[R:]):
                lost = t[part].reshape(w.shape) * dy_part[:, :, p]
                gained.sub_(lost)
                own.sub_(lost)
            d_log_w[part] = own.add_(_sum_of_later(gained)).view(log_w[part].shape)
            for r, p in _own(inclusive, P):
                d = dA_part[:, r, p].diagonal(dim1=1, dim2=2)[..., None]
                dx_part[:, :, r].addcmul_(vectors[R + p][part].reshape(w.shape), d)
                dy_part[:, :, p].addcmul_(vectors[r][part].reshape(w.shape), d)
        return d_log_w, None, *(t.view(shape) for t in dx.unbind(2)), *(t.view(shape) for t in dy.unbind(2))


def _groups(log_w: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pieces of the first axis small enough to stay near the processor, and the chunks they hold."""
    count, each = log_w.shape[0], log_w[0].numel()
    size, chunks = max(1, GROUP // each), prod(log_w.shape[1:-2])
    for start in range(0, count, size):
        stop = min(count, start + size)
        yield slice(start, stop), slice(start * chunks, stop * chunks)


def _own(inclusive: tuple[bool, ...], P: int) -> list[tuple[int, int]]:
    return [(r, p) for r, own in enumerate(inclusive) if own for p in range(P)]


def _fade(vectors: Any, log_w: Tensor, part: slice, inclusive: tuple[bool, ...], x: Tensor, y: Tensor) -> Tensor:
    """Fills x and y with the vectors side by side, an inclusive x faded by its own token; returns the decays."""
    w = log_w[part].exp()
    inside = (*w.shape[:-1], -1, w.shape[-1])
    for r, own in enumerate(inclusive):
        into = x.view(inside)[..., r, :]
        torch.mul(vectors[r][part], w, out=into) if own else into.copy_(vectors[r][part])
    for p, t in enumerate(vectors[len(inclusive) :]):
        y.view(inside)[..., p, :].copy_(t[part])
    return w.reshape(-1, *w.shape[-2:]).contiguous()


def _halves(t: Tensor, m: int) -> tuple[Tensor, ...]:
    """Blocks of 2 m tokens of t [n, L, R, K], cut in the middle: two views [n L / 2 m, m R, K]."""
    return t.view(-1, 2, m * t.shape[2], t.shape[3]).unbind(1)


def _below(A: Tensor, m: int) -> Tensor:
    """Blocks of A [n, R, P, L, L] whose rows are second and whose columns first halves of 2 m tokens: a view [n, L / 2 m, m, R, m, P]."""
    n, R, P, L, _ = A.shape
    strides = (R * P * L * L, 2 * m * (L + 1), L, P * L * L, 1, L * L)
    return A.as_strided((n, L // (2 * m), m, R, m, P), strides, A.storage_offset() + m * L)


def _sum_of_later(t: Tensor) -> Tensor:
    """At each token of [n, L, K] the sum over the tokens after it. Summed from the end, so that small sums stay exact."""
    return t.flip(1).cumsum_(1).flip(1).sub_(t)


def unit_solve(A: Float[Tensor, "n L L"], right: Float[Tensor, "n L F"]) -> Float[Tensor, "n L F"]:
    """(I - A)^-1 right, for a strictly lower triangular A with L a power of two.

    The inverse is put together from halves, as stable as substitution: [[T1, 0], [T2 A21 T1, T2]]. What lies on or above A's
    diagonal is not read.
    """
    return _UnitSolve.apply(A, right)


class _UnitSolve(Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, right: Tensor) -> Tensor:
        n, L, _ = A.shape
        T, m = A.new_ones(n * L, 1, 1), 1
        while m < L:
            between = A.as_strided((n, L // (2 * m), m, m), (A.stride(0), 2 * m * (L + 1), L, 1), A.storage_offset() + m * L)
            first, second = T.view(-1, 2, m, m).unbind(1)
            T = A.new_zeros(n * L // (2 * m), 2 * m, 2 * m)
            T[:, :m, :m] = first
            T[:, m:, m:] = second
            T[:, m:, :m] = second @ (between.reshape(-1, m, m) @ first)
            m *= 2
        solved = T @ right
        ctx.save_for_backward(T, solved)
        return solved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        T, solved = ctx.saved_tensors
        d = T.mT @ d
        return (d @ solved.mT).tril_(-1), d


def diagonal_scan(
    w: Float[Tensor, "N n K"], C: Float[Tensor, "N n K V"], S: Float[Tensor, "n K V"]
) -> tuple[Float[Tensor, "N n K V"], Float[Tensor, "n K V"]]:
    """S' = Diag(w) S + C over the first axis: the states before each chunk, and the last one."""
    return _DiagonalScan.apply(w, C, S)


class _DiagonalScan(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, C: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        states = _climbed(torch.addcmul, w[..., None], C, S)
        ctx.save_for_backward(w, states)
        return states[:-1], states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, states = ctx.saved_tensors
        g = _descended(torch.addcmul, w[..., None], d, d_last)
        return (g[1:] * states[:-1]).sum(-1), g[1:], g[0].clone()


def dense_scan(
    M: Float[Tensor, "N n K K"], C: Float[Tensor, "N n K V"], S: Float[Tensor, "n K V"]
) -> tuple[Float[Tensor, "N n K V"], Float[Tensor, "n K V"]]:
    """S' = M S + C over the first axis: the states before each chunk, and the last one."""
    return _DenseScan.apply(M, C, S)


class _DenseScan(Function):
    @staticmethod
    def forward(ctx: Any, M: Tensor, C: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
        states = _climbed(torch.baddbmm, M, C, S)
        ctx.save_for_backward(M, states)
        return states[:-1], states[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor, d_last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        M, states = ctx.saved_tensors
        g = _descended(torch.baddbmm, M.mT, d, d_last)
        return g[1:] @ states[:-1].mT, g[1:], g[0].clone()


def _climbed(step: Callable[..., Tensor], M: Tensor, C: Tensor, S: Tensor) -> Tensor:
    """S, and S' = M S + C after each n: `step(C, M, S)` is the product and the sum."""
    states = C.new_empty(len(C) + 1, *C.shape[1:])
    states[0] = S
    for M_n, C_n, before, after in zip(M.unbind(0), C.unbind(0), states[:-1].unbind(0), states[1:].unbind(0), strict=True):
        step(C_n, M_n, before, out=after)
    return states


def _descended(step: Callable[..., Tensor], M_transposed: Tensor, d: Tensor, d_last: Tensor) -> Tensor:
    """The gradients of all that `_climbed` returned, from those of its rows but the last, and of the last."""
    g = d.new_empty(len(d) + 1, *d.shape[1:])
    g[-1] = d_last
    for n in range(len(d) - 1, -1, -1):
        step(d[n], M_transposed[n], g[n + 1], out=g[n])
    return g

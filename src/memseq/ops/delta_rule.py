"""The gated delta rule: a matrix that erases what a key retrieves before it writes under that key.

Source: Schlag et al. (arXiv:2102.11174) for the rule, Yang et al. (arXiv:2406.06484) for the chunkwise form, Gated Delta Networks
(arXiv:2412.06464) for the decay.

    S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t         a_t = exp(log_a_t), log_a_t <= 0
    y_t = q_t S_t

Row vectors; everything per head. In a chunk of L tokens that starts from S_0, with c_t the sum of log_a over the chunk up to t and
G_tj = exp(c_t - c_j) for j <= t, else 0:

    u = (I + strictLower(diag(b) (K K^T * G)))^-1 diag(b) (V - diag(e^c) K S_0)          what each token adds to the matrix
    Y = diag(e^c) Q S_0 + (Q K^T * G) u
    S_L = e^{c_L} S_0 + (diag(e^{c_L - c}) K)^T u

The system is solved with S_0 in its right side: on a CPU that is fewer products than preparing W and U of all chunks, and a
chunk's tensors stay in the processor's cache.

Numbers (float32 against float64, relative, L = 16 to 256; random unit keys, one key repeated and b = 1, writes of strength 2, gates at
their limits: log_a = 0, -30; b = 0, 1): over 300 tokens y and S below 2e-6 and gradients below 6e-6, that of a shut gate too
(`tests/ops/test_delta_rule.py`). Over 1,024 tokens the worst seen in three draws: y and S 2.2e-6 for L up to 64 and 4.3e-6 for 256,
gradients 3.9e-6 and 6.1e-6. The system is solved by substitution and never inverted: with repeated keys an inverse by
doubling is off by 1e9. Inputs of lower precision are computed in the precision of S, float32 at least.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from memseq.ops.chunks import causal_gates, form_for, gate_gradient, lengths, within_chunks
from memseq.ops.kernels.choice import kernel_for
from memseq.ops.precision import unrounded

__all__ = ["delta_chunkwise", "delta_recurrent"]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Gates = Float[Tensor, "B H T"]
Matrix = Float[Tensor, "B H K V"]


def delta_recurrent(q: Keys, k: Keys, v: Values, beta: Gates, log_a: Gates, S: Matrix) -> tuple[Values, Matrix]:
    """The definition, token by token: what every other form is tested against, and the fastest for one token."""
    dtype = S.dtype
    with unrounded(S):
        q, k, v, beta, a = (z.to(dtype) for z in (q, k, v, beta[..., None], log_a[..., None]))
        y = []
        for q_t, k_t, v_t, b_t, a_t in zip(*(z.split(1, dim=2) for z in (q, k, v, beta, a.exp())), strict=True):
            S = a_t * S
            S = torch.addcmul(S, k_t.mT, b_t * (v_t - k_t @ S))
            y.append(q_t @ S)
        return y[0] if len(y) == 1 else torch.cat(y, dim=2), S


def delta_chunkwise(q: Keys, k: Keys, v: Values, beta: Gates, log_a: Gates, S: Matrix, *, chunk_size: int = 32) -> tuple[Values, Matrix]:
    """Equal to `delta_recurrent`, by matrix products within a chunk; the last chunk is as short as what is left.

    Differentiable once, by hand: the backward pass keeps the matrix at the start of every chunk and u, and recomputes the rest.
    """
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return delta_recurrent(q, k, v, beta, log_a, S)
    inputs = (q, k, v, beta, log_a, S)
    if (kernel := kernel_for("delta_rule", k, v, S)) is not None:
        return kernel(*inputs, chunk_size=chunk_size)
    if torch.is_grad_enabled() and any(z.requires_grad for z in inputs):
        return _Delta.apply(*inputs, chunk_size)
    return _read(*inputs, chunk_size, None)


def _read(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: Tensor, chunk_size: int, kept: list[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """All chunks in turn. `kept` receives, chunk by chunk, the matrix at its start and u."""
    (B, H, T, _), V, dtype, shape = k.shape, v.shape[-1], S.dtype, S.shape
    pieces = lengths(T, chunk_size)
    y = S.new_empty(B, T, H, V).transpose(1, 2)
    with unrounded(S):
        c = within_chunks(log_a.to(dtype), pieces)
        S = S.flatten(0, 1)
        for q_, k_, v_, b_, c_, y_ in zip(*(z.split(pieces, dim=2) for z in (q, k, v, beta, c, y)), strict=True):
            left, keys, G, grow, fade = _chunk(q_, k_, b_, c_, dtype)
            L = keys.shape[1]
            scores = (left @ keys.mT).unflatten(1, (2, L)).mul_(G[:, None])
            read = (left @ S).unflatten(1, (2, L)).mul_(grow[:, None])
            u = _solve(scores[:, 1], (v_.to(dtype) * b_.to(dtype)[..., None]).flatten(0, 1).sub_(read[:, 1]))
            y_.copy_(torch.baddbmm(read[:, 0], scores[:, 0], u).unflatten(0, (B, H)))
            if kept is not None:
                kept += [S, u]
            S = (S * grow[:, -1:]).baddbmm_((keys * fade).mT, u)
    return y, S.view(shape)


def _chunk(q: Tensor, k: Tensor, beta: Tensor, c: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Of one chunk: [Q; diag(b) K] of [N, 2L, K], K, G, e^c and e^{c_L - c}, with streams and heads in one axis."""
    k, c = k.to(dtype), c.flatten(0, 1)
    left = torch.cat([q.to(dtype), k * beta.to(dtype)[..., None]], dim=2).flatten(0, 1)
    return left, k.flatten(0, 1), causal_gates(c), c.exp()[..., None], (c[:, -1:] - c).exp()[..., None]


def _solve(lower: Tensor, right: Tensor) -> Tensor:
    """(I + strictLower(lower))^-1 right. Written for the transposes: a row-major right side is what LAPACK takes without a copy."""
    return torch.linalg.solve_triangular(lower.mT, right.mT, upper=True, left=False, unitriangular=True).mT


def _solve_transposed(lower: Tensor, right: Tensor) -> Tensor:
    """(I + strictLower(lower))^-T right."""
    return torch.linalg.solve_triangular(lower, right.mT, upper=False, left=False, unitriangular=True).mT


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, beta, log_a, S, chunk_size):
        kept: list[Tensor] = []  # of every chunk: the matrix at its start [B H, K, V], and u [B H, L, V]
        y, end = _read(q, k, v, beta, log_a, S, chunk_size, kept)
        ctx.save_for_backward(q, k, v, beta, log_a, *kept)
        ctx.chunk_size = chunk_size
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dS):
        q, k, v, beta, log_a, *kept = ctx.saved_tensors
        (B, H, T, K), V, dtype, shape = k.shape, v.shape[-1], dS.dtype, dS.shape
        pieces = lengths(T, ctx.chunk_size)
        dq, dk, dv = (dS.new_empty(B, T, H, size).transpose(1, 2) for size in (K, K, V))
        dbeta, dlog_a = (dS.new_empty(B, H, T) for _ in range(2))
        with unrounded(dS):
            c = within_chunks(log_a.to(dtype), pieces)
            chunks = zip(*(z.split(pieces, dim=2) for z in (q, k, v, beta, c, dy, dq, dk, dv, dbeta, dlog_a)), strict=True)
            dS = dS.flatten(0, 1)
            for q_, k_, v_, b_, c_, dy_, dq_, dk_, dv_, db_, dc_ in reversed(list(chunks)):
                u, S = kept.pop(), kept.pop()
                left, keys, G, grow, fade = _chunk(q_, k_, b_, c_, dtype)
                N, L = keys.shape[:2]
                scores = (left @ keys.mT).unflatten(1, (2, L)).mul_(G[:, None])
                errors = dS.new_empty(N, 2, L, V)  # d loss / d (the rows that `left` reads): [dY; -dR], R the right side of the system
                errors[:, 0] = dy_.flatten(0, 1)
                du = (keys * fade) @ dS
                dR = _solve_transposed(scores[:, 1], du.baddbmm_(scores[:, 0].mT, errors[:, 0]))
                torch.neg(dR, out=errors[:, 1])
                dscores = (errors.flatten(1, 2) @ u.mT).unflatten(1, (2, L))
                dscores[:, 1].tril_(-1)
                inside = torch.mul(dscores[:, 0], scores[:, 0]).addcmul_(dscores[:, 1], scores[:, 1])
                dscores = dscores.mul_(G[:, None]).flatten(1, 2)
                errors = errors.mul_(grow[:, None]).flatten(1, 2)
                dleft, dkeys = errors @ S.mT, torch.bmm(u, dS.mT).mul_(fade)
                reads, writes = (dleft * left).sum(-1).unflatten(1, (2, L)).sum(1), (dkeys * keys).sum(-1)
                kept_on = (dS * S).sum((-1, -2)).mul_(grow[:, -1, 0])
                dc_.copy_(gate_gradient(inside, reads, writes, kept_on).unflatten(0, (B, H)))
                dleft.baddbmm_(dscores, keys)
                dkeys.baddbmm_(dscores.mT, left)
                dleft = dleft.unflatten(0, (B, H)).unflatten(2, (2, L))
                dR, b_ = dR.unflatten(0, (B, H)), b_.to(dtype)[..., None]
                dq_.copy_(dleft[:, :, 0])
                torch.addcmul(dkeys.unflatten(0, (B, H)), dleft[:, :, 1], b_, out=dk_)
                torch.mul(dR, b_, out=dv_)
                db_.copy_((dR * v_).sum(-1) + (dleft[:, :, 1] * k_).sum(-1))
                dS = (dS * grow[:, -1:]).baddbmm_(left.mT, errors)
        return dq, dk, dv, dbeta, dlog_a, dS.view(shape), None

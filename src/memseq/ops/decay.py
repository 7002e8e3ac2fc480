"""A matrix that fades by a scalar gate: linear attention, RetNet and Mamba-2 are this one recurrence.

Source: Katharopoulos et al. (arXiv:2006.16236), RetNet (arXiv:2307.08621), Mamba-2 (arXiv:2405.21060).

    S_t = a_t S_{t-1} + k_t^T v_t         a_t = exp(log_a_t), log_a_t <= 0
    y_t = q_t S_t

Row vectors; everything per head. In a chunk of L tokens that starts from S_0, with c_t the sum of log_a over the chunk up to t and
G_tj = exp(c_t - c_j) for j <= t, else 0:

    Y   = diag(e^c) Q S_0 + (Q K^T * G) V
    S_L = e^{c_L} S_0 + K^T diag(e^{c_L - c}) V

Queries and keys may be fewer than values: G groups of them, each for H / G heads side by side (Mamba-2's B and C). Then Q K^T is
formed once a group, and the products with S are one product a group.

Numbers (float32 against float64, relative, L = 16 to 256, gates at their limits, log_a = 0 and -30, too): y, S and gradients below 2e-6
over 300 tokens (`tests/ops/test_decay.py`); over 1,024 the worst seen in three draws was 1.1e-6. Inputs of lower precision are computed
in the precision of S, float32 at least.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from memseq.errors import InputError
from memseq.ops.chunks import causal_gates, form_for, gate_gradient, lengths, within_chunks
from memseq.ops.kernels.choice import kernel_for
from memseq.ops.precision import unrounded

__all__ = ["decay_chunkwise", "decay_recurrent"]

Keys = Float[Tensor, "B G T K"]
Values = Float[Tensor, "B H T V"]
Gates = Float[Tensor, "B H T"]
Matrix = Float[Tensor, "B H K V"]


def decay_recurrent(q: Keys, k: Keys, v: Values, log_a: Gates, S: Matrix) -> tuple[Values, Matrix]:
    """The definition, token by token: what every other form is tested against, and the fastest for one token."""
    dtype, share = S.dtype, _share(k, v)
    with unrounded(S):
        q, k, v, a = (z.to(dtype) for z in (q, k, v, log_a[..., None]))
        q, k = (z if share == 1 else z.repeat_interleave(share, dim=1) for z in (q, k))
        y = []
        for q_t, k_t, v_t, a_t in zip(*(z.split(1, dim=2) for z in (q, k, v, a.exp())), strict=True):
            S = torch.addcmul(a_t * S, k_t.mT, v_t)
            y.append(q_t @ S)
        return y[0] if len(y) == 1 else torch.cat(y, dim=2), S


def decay_chunkwise(q: Keys, k: Keys, v: Values, log_a: Gates, S: Matrix, *, chunk_size: int = 64) -> tuple[Values, Matrix]:
    """Equal to `decay_recurrent`, by matrix products within a chunk; the last chunk is as short as what is left.

    Differentiable once, by hand: the backward pass keeps the matrix at the start of every chunk, and recomputes the rest.
    """
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return decay_recurrent(q, k, v, log_a, S)
    _share(k, v)
    inputs = (q, k, v, log_a, S)
    if (kernel := kernel_for("decay", k, v, S)) is not None:
        return kernel(*inputs, chunk_size=chunk_size)
    if torch.is_grad_enabled() and any(z.requires_grad for z in inputs):
        return _Decay.apply(*inputs, chunk_size)
    return _read(*inputs, chunk_size, None)


def _share(k: Tensor, v: Tensor) -> int:
    """How many heads read with one group's keys."""
    if v.shape[1] % k.shape[1]:
        raise InputError(f"{v.shape[1]} heads of values cannot share {k.shape[1]} groups of keys equally; use a divisor of {v.shape[1]}")
    return v.shape[1] // k.shape[1]


def _by_token(z: Tensor, share: int) -> Tensor:
    """[B, G R, L, V] -> [B G, L, R, V]: one wide matrix a group."""
    return z.unflatten(1, (-1, share)).transpose(2, 3).flatten(0, 1)


def _read(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: Tensor, chunk_size: int, kept: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    """All chunks in turn. `kept` receives the matrix at the start of each, as [B G, K, R V]."""
    (B, H, T, V), share, dtype = v.shape, _share(k, v), S.dtype
    pieces = lengths(T, chunk_size)
    y = S.new_empty(B, T, H, V).transpose(1, 2)
    with unrounded(S):
        c = within_chunks(log_a.to(dtype), pieces)
        S = _by_token(S, share).flatten(2)
        for q_, k_, v_, c_, y_ in zip(*(z.split(pieces, dim=2) for z in (q, k, v, c, y)), strict=True):
            q_, k_, v_ = q_.to(dtype).flatten(0, 1), k_.to(dtype).flatten(0, 1), v_.to(dtype)
            grow, fade, keep = _factors(c_, share)
            L = q_.shape[1]
            inside = _gates(c_, share).mul_((q_ @ k_.mT)[:, None]).flatten(0, 1) @ v_.flatten(0, 1)
            before = (q_ @ S).unflatten(2, (share, V)).mul_(grow)
            y_.unflatten(1, (-1, share)).copy_(before.unflatten(0, (B, -1)).transpose(2, 3).add_(inside.view(B, -1, share, L, V)))
            if kept is not None:
                kept.append(S)
            values = (_by_token(v_, share) * fade).flatten(2)
            S = (S.unflatten(2, (share, V)) * keep).flatten(2).baddbmm_(k_.mT, values)
    return y, _heads_of(S, B, share, V)


def _heads_of(S: Tensor, B: int, share: int, V: int) -> Tensor:
    """[B G, K, R V] -> [B, G R, K, V]."""
    return S.unflatten(2, (share, V)).transpose(1, 2).unflatten(0, (B, -1)).flatten(1, 2)


def _factors(c: Tensor, share: int) -> tuple[Tensor, Tensor, Tensor]:
    """e^c and e^{c_L - c} of [B G, L, R, 1], and e^{c_L} of [B G, 1, R, 1]."""
    c = _by_token(c[..., None], share)
    return c.exp(), (c[:, -1:] - c).exp(), c[:, -1:].exp()


def _gates(c: Tensor, share: int) -> Tensor:
    """G of [B G, R, L, L]."""
    return causal_gates(c.unflatten(1, (-1, share)).flatten(0, 1))


class _Decay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, log_a, S, chunk_size):
        starts: list[Tensor] = []  # the matrix at the start of every chunk, [B G, K, R V]
        y, end = _read(q, k, v, log_a, S, chunk_size, starts)
        ctx.save_for_backward(q, k, v, log_a, *starts)
        ctx.chunk_size = chunk_size
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dS):
        q, k, v, log_a, *kept = ctx.saved_tensors
        (B, H, T, V), K, share, dtype = v.shape, k.shape[-1], _share(k, v), dS.dtype
        pieces = lengths(T, ctx.chunk_size)
        dq, dk = (dS.new_empty(B, T, k.shape[1], K).transpose(1, 2) for _ in range(2))
        dv, dlog_a = dS.new_empty(B, T, H, V).transpose(1, 2), dS.new_empty(B, H, T)
        with unrounded(dS):
            c = within_chunks(log_a.to(dtype), pieces)
            chunks = zip(*(z.split(pieces, dim=2) for z in (q, k, v, c, dy, dq, dk, dv, dlog_a)), strict=True)
            dS = _by_token(dS, share).flatten(2)
            for q_, k_, v_, c_, dy_, dq_, dk_, dv_, dc_ in reversed(list(chunks)):
                S = kept.pop()
                q_, k_, v_ = q_.to(dtype).flatten(0, 1), k_.to(dtype).flatten(0, 1), v_.to(dtype)
                grow, fade, keep = _factors(c_, share)
                L = q_.shape[1]
                G, heads = _gates(c_, share), dy_.to(dtype).flatten(0, 1)
                scores = G * (q_ @ k_.mT)[:, None]
                dscores = (heads @ v_.flatten(0, 1).mT).view_as(G)
                inside = scores.flatten(0, 1).mT @ heads
                later = (k_ @ dS).unflatten(2, (share, V)).mul_(fade)
                torch.add(later.unflatten(0, (B, -1)).transpose(2, 3), inside.view(B, -1, share, L, V), out=dv_.unflatten(1, (-1, share)))
                dy_, v_ = _by_token(dy_.to(dtype), share), _by_token(v_, share)
                reads = (q_ @ S).unflatten(2, (share, V)).mul_(grow).mul_(dy_).sum(-1)
                writes = later.mul_(v_).sum(-1)
                kept_on = (dS * S).unflatten(2, (share, V)).sum((1, 3)).mul_(keep[:, 0, :, 0])
                scores.mul_(dscores)
                dscores.mul_(G)
                reads, writes = (z.transpose(1, 2).flatten(0, 1) for z in (reads, writes))
                dc_.copy_(gate_gradient(scores.flatten(0, 1), reads, writes, kept_on.flatten()).view(B, H, L))
                dscores = dscores[:, 0] if share == 1 else dscores.sum(1)
                reading, values = (dy_ * grow).flatten(2), (v_ * fade).flatten(2)
                dq_.copy_(torch.bmm(dscores, k_).baddbmm_(reading, S.mT).unflatten(0, (B, -1)))
                dk_.copy_(torch.bmm(dscores.mT, q_).baddbmm_(values, dS.mT).unflatten(0, (B, -1)))
                dS = (dS.unflatten(2, (share, V)) * keep).flatten(2).baddbmm_(q_.mT, reading)
        return dq, dk, dv, dlog_a, _heads_of(dS, B, share, V), None

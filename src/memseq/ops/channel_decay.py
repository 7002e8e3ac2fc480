"""Memories that are matrices whose key channels fade each at its own rate: GLA, HGRN-2, RWKV-6, KDA and RWKV-7.

Source: Gated Linear Attention (Yang et al., arXiv:2312.06635); RWKV-6 (Peng et al., arXiv:2404.05892); RWKV-7 (Peng et al.,
arXiv:2503.14456); Kimi Linear (arXiv:2510.26692). One recurrence, diagonal plus rank one, and three special cases of it:

    channel   S_t = Diag(w_t) S_(t-1) + b_t^T (a_t S_(t-1)) + k_t^T v_t       y_t = q_t S_t
    gla       a = 0                                                           y_t = q_t S_t
    rwkv6     a = 0                       y_t = q_t (S_(t-1) + Diag(u) k_t^T v_t), read before it is written
    kda       a = w k, b = -beta k, written beta k:  S_t = Diag(w_t) S_(t-1) + beta_t k_t^T (v_t - k_t Diag(w_t) S_(t-1))

`*_recurrent` is the definition, token by token. `*_chunkwise` is equal to it for every chunk size. With c_t = log w_1 + ... + log w_t
inside a chunk, A the scores of `channel_scores.py` and S_0 the state before the chunk,

    U   = (I - A_ab)^-1 (A_ak V + (a e^(c - log w)) S_0)                      what each token writes with b; nothing where a = 0
    Y   = (q e^c) S_0 + A_qk V + A_qb U
    S_L = e^(c_L) S_0 + (k e^(c_L - c))^T V + (b e^(c_L - c))^T U

All but the states between chunks is computed for all chunks at once. Chunks are filled up to a power of two with tokens that change
nothing (w = 1, all else 0). Decays are products of numbers in [0, 1], so any gate is safe, 0 and 1 included.

Letters: B streams, H heads, T tokens, K channels of a key, V of a value. Arithmetic is in the dtype of S, float32 at least.

Measured in float32 against the definition in float64 (`tests/ops/test_channel_decay.py`), for chunks of 16 to 256 tokens and gates from
e^-30 to 1: relative error below 1e-6 of outputs and states, 2e-6 of gradients, 2e-5 of the gradients of gates; 2e-6 where one key is
written 256 times with beta = 1. With inputs rounded to bfloat16, 5e-3.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.ops.channel_scores import decayed_scores, dense_scan, diagonal_scan, unit_solve
from memseq.ops.chunks import form_for
from memseq.ops.kernels.choice import kernel_for

__all__ = [
    "channel_chunkwise",
    "channel_recurrent",
    "gla_chunkwise",
    "gla_recurrent",
    "kda_chunkwise",
    "kda_recurrent",
    "rwkv6_chunkwise",
    "rwkv6_recurrent",
]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Matrix = Float[Tensor, "B H K V"]

# ---------------------------------------------------------------- definitions


def channel_recurrent(q: Keys, k: Keys, v: Values, a: Keys, b: Keys, log_w: Keys, S: Matrix) -> tuple[Values, Matrix]:
    """The definition: fade, write with b what a finds, write v with k, read."""
    y = []
    with _exactly(S):
        for q_t, k_t, v_t, a_t, b_t, w_t in _tokens(S, q, k, v, a, b, log_w.to(S.dtype).exp()):
            found = a_t[..., None, :] @ S
            S = w_t[..., None] * S + torch.stack([b_t, k_t], dim=-1) @ torch.cat([found, v_t[..., None, :]], dim=-2)
            y.append((q_t[..., None, :] @ S)[..., 0, :])
    return torch.stack(y, dim=2), S


def gla_recurrent(q: Keys, k: Keys, v: Values, log_w: Keys, S: Matrix) -> tuple[Values, Matrix]:
    """`channel_recurrent` with a = 0."""
    y = []
    with _exactly(S):
        for q_t, k_t, v_t, w_t in _tokens(S, q, k, v, log_w.to(S.dtype).exp()):
            S = w_t[..., None] * S + k_t[..., None] * v_t[..., None, :]
            y.append((q_t[..., None, :] @ S)[..., 0, :])
    return torch.stack(y, dim=2), S


def rwkv6_recurrent(q: Keys, k: Keys, v: Values, u: Float[Tensor, "H K"], log_w: Keys, S: Matrix) -> tuple[Values, Matrix]:
    """`gla_recurrent` that reads before it writes; the token's own pair counts with the bonus u instead."""
    y = []
    with _exactly(S):
        u = u.to(S.dtype)
        for q_t, k_t, v_t, w_t in _tokens(S, q, k, v, log_w.to(S.dtype).exp()):
            y.append((q_t[..., None, :] @ S)[..., 0, :] + (q_t * u * k_t).sum(-1, keepdim=True) * v_t)
            S = w_t[..., None] * S + k_t[..., None] * v_t[..., None, :]
    return torch.stack(y, dim=2), S


def kda_recurrent(q: Keys, k: Keys, v: Values, beta: Float[Tensor, "B H T"], log_w: Keys, S: Matrix) -> tuple[Values, Matrix]:
    """Fade, then write what is missing: beta of the difference between v and what k finds."""
    y = []
    with _exactly(S):
        for q_t, k_t, v_t, beta_t, w_t in _tokens(S, q, k, v, beta[..., None], log_w.to(S.dtype).exp()):
            S = w_t[..., None] * S
            missing = beta_t * (v_t - (k_t[..., None, :] @ S)[..., 0, :])
            S = S + k_t[..., None] * missing[..., None, :]
            y.append((q_t[..., None, :] @ S)[..., 0, :])
    return torch.stack(y, dim=2), S


# ---------------------------------------------------------------- chunk forms


def channel_chunkwise(
    q: Keys, k: Keys, v: Values, a: Keys, b: Keys, log_w: Keys, S: Matrix, *, chunk_size: int = 32
) -> tuple[Values, Matrix]:
    """Equal to `channel_recurrent`."""
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return channel_recurrent(q, k, v, a, b, log_w, S)
    if (kernel := kernel_for("channel", k, v, S)) is not None:
        return kernel(q, k, v, a, b, log_w, S, chunk_size=chunk_size)
    return _by_chunks(_channel, (q, k, v, a, b, log_w), S, chunk_size)


def gla_chunkwise(q: Keys, k: Keys, v: Values, log_w: Keys, S: Matrix, *, chunk_size: int = 64) -> tuple[Values, Matrix]:
    """Equal to `gla_recurrent`: nothing is solved."""
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return gla_recurrent(q, k, v, log_w, S)
    if (kernel := kernel_for("gla", k, v, S)) is not None:
        return kernel(q, k, v, log_w, S, chunk_size=chunk_size)
    return _by_chunks(_gla, (q, k, v, log_w), S, chunk_size)


def rwkv6_chunkwise(
    q: Keys, k: Keys, v: Values, u: Float[Tensor, "H K"], log_w: Keys, S: Matrix, *, chunk_size: int = 64
) -> tuple[Values, Matrix]:
    """Equal to `rwkv6_recurrent`: scores of earlier tokens only, the bonus on their diagonal."""
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return rwkv6_recurrent(q, k, v, u, log_w, S)
    if (kernel := kernel_for("rwkv6", k, v, S)) is not None:
        return kernel(q, k, v, u, log_w, S, chunk_size=chunk_size)
    return _by_chunks(_rwkv6, (q, k, v, q * u[:, None] * k, log_w), S, chunk_size)


def kda_chunkwise(
    q: Keys, k: Keys, v: Values, beta: Float[Tensor, "B H T"], log_w: Keys, S: Matrix, *, chunk_size: int = 32
) -> tuple[Values, Matrix]:
    """Equal to `kda_recurrent`. One key erases and writes, which is half the work of `channel_chunkwise`."""
    if form_for(q.shape[2], chunk_size) == "recurrent":
        return kda_recurrent(q, k, v, beta, log_w, S)
    if (kernel := kernel_for("kda", k, v, S)) is not None:
        return kernel(q, k, v, beta, log_w, S, chunk_size=chunk_size)
    return _by_chunks(_kda, (q, k, v, beta[..., None], log_w), S, chunk_size)


def _channel(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    A, x, y, end = decayed_scores([q, a], [k, b], log_w, inclusive=(True, False))
    (A_qk, A_qb, A_ak, A_ab), (q, a), (k, b) = A.flatten(1, 2).unbind(1), x.unbind(2), y.unbind(2)  # unbind: its gradient is one stack
    v = v.flatten(0, 2)
    U, W = _solved(A_ab, A_ak @ v, a)
    states, last = _dense(torch.baddbmm(torch.diag_embed(end), b.mT, W), torch.baddbmm(k.mT @ v, b.mT, U), S)
    U = torch.baddbmm(U, W, states)
    return torch.baddbmm(torch.baddbmm(A_qk @ v, A_qb, U), q, states), last


def _gla(q: Tensor, k: Tensor, v: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    A, x, y, end = decayed_scores([q], [k], log_w, inclusive=(True,))
    (A,), (q,), (k,), v = A.flatten(1, 2).unbind(1), x.unbind(2), y.unbind(2), v.flatten(0, 2)
    states, last = _diagonal(end, k.mT @ v, S)
    return torch.baddbmm(A @ v, q, states), last


def _rwkv6(q: Tensor, k: Tensor, v: Tensor, own: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    A, x, y, end = decayed_scores([q], [k], log_w, inclusive=(False,))
    (A,), (q,), (k,), v = A.flatten(1, 2).unbind(1), x.unbind(2), y.unbind(2), v.flatten(0, 2)
    states, last = _diagonal(end, k.mT @ v, S)
    return torch.addcmul(torch.baddbmm(A @ v, q, states), own.flatten(0, 2).sum(-1, keepdim=True), v), last


def _kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_w: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    A, x, y, end = decayed_scores([q, k], [k], log_w, inclusive=(True, True))
    (A_qk, A_kk), (q, k_start), (k,), beta = A.flatten(1, 2).unbind(1), x.unbind(2), y.unbind(2), beta.flatten(0, 2)
    U, W = _solved(-beta * A_kk, beta * v.flatten(0, 2), -beta * k_start)
    states, last = _dense(torch.baddbmm(torch.diag_embed(end), k.mT, W), k.mT @ U, S)
    U = torch.baddbmm(U, W, states)
    return torch.baddbmm(A_qk @ U, q, states), last


# ---------------------------------------------------------------- what they share


def _exactly(S: Tensor) -> torch.autocast:
    return torch.autocast(S.device.type, enabled=False)


def _tokens(S: Tensor, *vectors: Tensor) -> zip:
    return zip(*(z.to(S.dtype).unbind(2) for z in vectors), strict=True)


def _solved(A: Tensor, U: Tensor, W: Tensor) -> tuple[Tensor, ...]:
    return unit_solve(A, torch.cat([U, W], dim=-1)).split([U.shape[-1], W.shape[-1]], dim=-1)


def _diagonal(w: Tensor, C: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    streams, n = S.flatten(0, 1), S.shape[0] * S.shape[1]
    states, last = diagonal_scan(w.unflatten(0, (-1, n)), C.unflatten(0, (-1, n)), streams)
    return states.flatten(0, 1), last.view(S.shape)


def _dense(M: Tensor, C: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    streams, n = S.flatten(0, 1), S.shape[0] * S.shape[1]
    states, last = dense_scan(M.unflatten(0, (-1, n)), C.unflatten(0, (-1, n)), streams)
    return states.flatten(0, 1), last.view(S.shape)


def _by_chunks(
    form: Callable[..., tuple[Tensor, Tensor]], vectors: tuple[Tensor, ...], S: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """`form` over the chunks of [B, H, T, ...], laid out [N, B, H, L, ...]: the whole ones at once, then what is left."""
    B, H, T = vectors[0].shape[:3]
    rest = T % chunk_size
    pieces = list(zip(*(z.to(S.dtype).split([T - rest, rest] if 0 < rest < T else T, dim=2) for z in vectors), strict=True))
    read = []
    with _exactly(S):
        for piece in pieces:
            length = piece[0].shape[2]
            L = min(chunk_size, length)
            fill = (1 << (L - 1).bit_length()) - L  # the halving wants a power of two
            cut = (z.unflatten(2, (-1, L)).permute(2, 0, 1, 3, 4) for z in piece)
            y, S = form(*(F.pad(z, (0, 0, 0, fill)) if fill else z for z in cut), S)
            y = y.view(length // L, B, H, L + fill, -1)[..., :L, :]
            read.append(y.permute(1, 2, 0, 3, 4).reshape(B, H, length, -1))
    return read[0] if len(read) == 1 else torch.cat(read, dim=2), S

"""The backward pass of `matrix.py`: gradients of the decay and of the gated delta rule by chunks.

With dS the gradient of the matrix at a chunk's end, P = Q K^T * G, e = e^c, f = e^{c_L - c}, and A the matrix of the system
(I + A) u = R that a chunk of the delta rule solves, R = diag(b) (V - diag(e) K S):

    states     chunk after chunk from the last, for every head and block of values:
               du  = diag(f) K dS + P^T dY,   dR = (I + A)^-T du                                      (of the decay u = V, and dV = du)
               dS <- e^{c_L} dS + (diag(e) Q)^T dY - (diag(b e) K)^T dR
    inputs     every chunk by itself: what is left of dQ, dK, dV, db, and the gradient of log_a, path by path as in
               `ops/chunks.py`: only paths that pass a gate are summed into its gradient

Groups of heads that share keys write gradients of their own, which are added up afterwards.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["gradients", "sizes_of"]

VALUES = 32  # columns of the matrix that a program holds


def sizes_of(K: int, L: int) -> dict[str, Any]:
    """The constants of a launch."""
    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {"L": L, "BK": max(16, triton.next_power_of_2(K)), "BV": VALUES, "PRECISION": precision, "num_warps": 4, "num_stages": 1}


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_a: Tensor,
    states: Tensor,
    u: Tensor | None,
    inverse: Tensor | None,
    dy: Tensor,
    dS: Tensor,
    L: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """dq, dk, dv, dbeta (None for the decay), dlog_a and the gradient of the matrix at the start.

    `states` [n, B H, K, V] are the matrices at the chunks' starts, `u` [n, B H, L, V] and `inverse` [n, B H, L, L] the delta rule's.
    """
    (B, H, T, V), G, K = v.shape, k.shape[1], k.shape[-1]
    q, k, v, log_a, dy = (z.transpose(1, 2).contiguous() for z in (q, k, v, log_a, dy))
    n, delta, begin = triton.cdiv(T, L), beta is not None, torch.empty_like(dS, memory_format=torch.contiguous_format)
    later, dR = torch.empty_like(states), dS.new_empty((n, B * H, L, V) if delta else (1,))
    dq, dk, dv = dS.new_empty(B, T, H, K), dS.new_empty(B, T, H, K), dS.new_empty(B, T, H, V)
    dlog_a, dbeta = dS.new_empty(B, T, H), dS.new_empty((B, T, H) if delta else (1,))
    given = beta.transpose(1, 2).contiguous() if beta is not None else log_a
    u, inverse = (log_a if z is None else z for z in (u, inverse))
    sizes = sizes_of(K, L) | {"DELTA": delta}
    with torch.cuda.device_of(dS):  # Triton starts its kernels on the current device
        blocks = triton.cdiv(V, sizes["BV"])
        _states_back[(B * H, blocks)](q, k, given, log_a, inverse, dy, dS.contiguous(), later, dR, dv, begin, T, H, G, K, V, **sizes)
        wide = sizes | {"num_warps": 8 if sizes["BK"] * L > 64 * 64 else 4}
        _inputs_back[(n, B * H)](
            q, k, v, given, log_a, states, u, dy, later, dR, dq, dk, dv, dbeta, dlog_a, T, H, G, K, V, **wide
        )  # fmt: skip
    dq, dk, dv = (z.transpose(1, 2) for z in (dq, dk, dv))
    if G < H:
        dq, dk = (z.unflatten(1, (G, -1)).sum(2) for z in (dq, dk))
    return dq, dk, dv, dbeta.transpose(1, 2) if delta else None, dlog_a.transpose(1, 2), begin


@triton.jit
@no_type_check
def _states_back(
    q, k, beta, log_a, inverse, dy, end, later, dR, dv, begin, T, H, G, K, V,
    DELTA: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    stream, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV + tl.arange(0, BV)
    i, d = tl.arange(0, L), tl.arange(0, BK)
    batch, head, streams = stream // H, stream % H, tl.num_programs(0).to(tl.int64)
    inside = (d < K)[:, None] & (e < V)[None, :]
    place = (stream * K + d)[:, None] * V + e[None, :]
    seen = i[:, None] >= i[None, :]
    dS = tl.load(end + place, mask=inside, other=0.0).to(tl.float32)
    chunks = tl.cdiv(T, L)
    for back in range(chunks):
        chunk = chunks - 1 - back
        t = chunk * L + i
        there = t < T
        tl.store(later + chunk * streams * K * V + place, dS, mask=inside)
        token, row = (batch * T + t) * H + head, (batch * T + t) * G + head // (H // G)
        gates = tl.load(log_a + token, mask=there, other=0.0).to(tl.float32)
        c, total = tl.cumsum(gates, axis=0), tl.sum(gates, axis=0)
        key, value = there[:, None] & (d < K)[None, :], there[:, None] & (e < V)[None, :]
        queries = tl.load(q + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
        keys = tl.load(k + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
        told = tl.load(dy + token[:, None] * V + e[None, :], mask=value, other=0.0).to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        scores = scores * tl.exp(tl.where(seen, c[:, None] - c[None, :], float("-inf")))
        du = tl.dot(keys * tl.exp(total - c)[:, None], dS, input_precision=PRECISION)
        du += tl.dot(tl.trans(scores), told, input_precision=PRECISION)
        dS = dS * tl.exp(total) + tl.dot(tl.trans(queries), told * tl.exp(c)[:, None], input_precision=PRECISION)
        if DELTA:
            rows = (chunk * streams + stream) * L + i
            solved = tl.load(inverse + rows[:, None] * L + i[None, :])
            right = tl.dot(tl.trans(solved), du, input_precision=PRECISION)
            tl.store(dR + rows[:, None] * V + e[None, :], right, mask=(e < V)[None, :])
            b = tl.load(beta + token, mask=there, other=0.0).to(tl.float32)
            dS -= tl.dot(tl.trans(keys), right * (b * tl.exp(c))[:, None], input_precision=PRECISION)
        else:
            tl.store(dv + token[:, None] * V + e[None, :], du, mask=value)
    tl.store(begin + place, dS, mask=inside)


@triton.jit
@no_type_check
def _inputs_back(
    q, k, v, beta, log_a, states, u, dy, later, dR, dq, dk, dv, dbeta, dlog_a, T, H, G, K, V,
    DELTA: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, d, f = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    batch, head, streams = stream // H, stream % H, tl.num_programs(1).to(tl.int64)
    t = chunk * L + i
    there, token, row = t < T, (batch * T + t) * H + head, (batch * T + t) * G + head // (H // G)
    rows = (chunk * streams + stream) * L + i
    gates = tl.load(log_a + token, mask=there, other=0.0).to(tl.float32)
    c, total = tl.cumsum(gates, axis=0), tl.sum(gates, axis=0)
    grow, fade = tl.exp(c), tl.exp(total - c)
    key = there[:, None] & (d < K)[None, :]
    queries = tl.load(q + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
    keys = tl.load(k + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
    b = tl.zeros([L], tl.float32)
    if DELTA:
        b = tl.load(beta + token, mask=there, other=0.0).to(tl.float32)
    readers, erasers = tl.zeros([L, L], tl.float32), tl.zeros([L, L], tl.float32)  # gradients of Q K^T and of diag(b) K K^T
    dqueries, dwriters, dkeys = tl.zeros([L, BK], tl.float32), tl.zeros([L, BK], tl.float32), tl.zeros([L, BK], tl.float32)
    dstrength, kept = tl.zeros([L], tl.float32), tl.zeros([BK], tl.float32)
    for first in range(0, V, BV):
        e = first + f
        value, held = there[:, None] & (e < V)[None, :], (d < K)[:, None] & (e < V)[None, :]
        told = tl.load(dy + token[:, None] * V + e[None, :], mask=value, other=0.0).to(tl.float32)
        place = ((chunk * streams + stream) * K + d)[:, None] * V + e[None, :]
        S = tl.load(states + place, mask=held, other=0.0)
        dS = tl.load(later + place, mask=held, other=0.0)
        values = tl.load(v + token[:, None] * V + e[None, :], mask=value, other=0.0).to(tl.float32)
        if DELTA:
            written = tl.load(u + rows[:, None] * V + e[None, :], mask=(e < V)[None, :], other=0.0)
            right = tl.load(dR + rows[:, None] * V + e[None, :], mask=(e < V)[None, :], other=0.0)
            tl.store(dv + token[:, None] * V + e[None, :], right * b[:, None], mask=value)
            dstrength += tl.sum(right * values, axis=1)
            erasers -= tl.dot(right, tl.trans(written), input_precision=PRECISION)
            dwriters -= tl.dot(right * grow[:, None], tl.trans(S), input_precision=PRECISION)
        else:
            written = values
        readers += tl.dot(told, tl.trans(written), input_precision=PRECISION)
        dqueries += tl.dot(told * grow[:, None], tl.trans(S), input_precision=PRECISION)
        dkeys += tl.dot(written * fade[:, None], tl.trans(dS), input_precision=PRECISION)
        kept += tl.sum(S * dS, axis=1)
    seen, before = i[:, None] >= i[None, :], i[:, None] > i[None, :]
    between = tl.exp(tl.where(seen, c[:, None] - c[None, :], float("-inf")))
    like = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
    readers = readers * between
    paths = tl.where(before, readers * like, 0.0)  # of what stands on the diagonal no path passes a gate
    reads, writes = tl.sum(dqueries * queries, axis=1), tl.sum(dkeys * keys, axis=1)
    if DELTA:
        writers = keys * b[:, None]
        erasers = tl.where(before, erasers * between, 0.0)
        paths += erasers * tl.dot(writers, tl.trans(keys), input_precision=PRECISION)
        reads += tl.sum(dwriters * writers, axis=1)
        dwriters += tl.dot(erasers, keys, input_precision=PRECISION)
        dkeys += tl.dot(tl.trans(erasers), writers, input_precision=PRECISION) + dwriters * b[:, None]
        dstrength += tl.sum(dwriters * keys, axis=1)
        tl.store(dbeta + token, dstrength, mask=there)
    dqueries += tl.dot(readers, keys, input_precision=PRECISION)
    dkeys += tl.dot(tl.trans(readers), queries, input_precision=PRECISION)
    across = tl.where(before, tl.dot(tl.where(seen, 1.0, 0.0).trans(), paths, input_precision=PRECISION), 0.0)
    dgates = tl.sum(across, axis=1) + tl.sum(tl.where(seen, reads[:, None], 0.0), axis=0)
    dgates += tl.sum(tl.where(before, writes[None, :], 0.0), axis=1) + tl.sum(kept, axis=0) * tl.exp(total)
    tl.store(dq + token[:, None] * K + d[None, :], dqueries, mask=key)
    tl.store(dk + token[:, None] * K + d[None, :], dkeys, mask=key)
    tl.store(dlog_a + token, dgates, mask=there)

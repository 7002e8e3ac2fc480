"""The decay and the gated delta rule by chunks in Triton: the equations of `ops/decay.py` and `ops/delta_rule.py`.

    prepare    every chunk by itself, the delta rule alone: (I + A)^-1 by substitution, row by row, then
               U_0 = (I + A)^-1 diag(b) V  and  W = (I + A)^-1 diag(b e^c) K
    states     chunk after chunk, for every head and block of values: the matrix at the start of each chunk, u = U_0 - W S
               (for the decay u is V), and the matrix at the end
    outputs    every chunk by itself: Y = diag(e^c) Q S + (Q K^T * G) u

The backward pass is in `matrix_back.py`. It gets the matrix at the start of every chunk, u, and (I + A)^-1.

Tokens before heads, [B, T, H, ...], as memories project them, so that nothing is copied. Sums are float32; products are float32 as well
unless `torch.set_float32_matmul_precision` allows TF32. Keys have at most 256 channels, held at once. Chunks are powers of two from 16
to 64 at most, to 32 where keys have more than 64 channels and 16 where they have more than 128, whatever `chunk_size` says: the largest
program of the backward pass then shares 80 KB (64 x 64) to 88 KB (32 x 128), which GPUs of 100 KB have too.

Tested against the definitions under Triton's interpreter, and compiled for sm_80 and sm_90 (`tests/ops/test_triton_*.py`).
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from memseq.ops.kernels.matrix_back import gradients, sizes_of

__all__ = ["decay", "delta_rule"]


def decay(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: Tensor, *, chunk_size: int) -> tuple[Tensor, Tensor]:
    """`decay_chunkwise`."""
    return _Decay.apply(q, k, v, log_a, S, _length(chunk_size, k.shape[-1]))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: Tensor, *, chunk_size: int) -> tuple[Tensor, Tensor]:
    """`delta_chunkwise`."""
    return _Delta.apply(q, k, v, beta, log_a, S, _length(chunk_size, k.shape[-1]))


class _Decay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
        y, end, states, _, _ = _read(q, k, v, None, log_a, S, chunk_size)
        ctx.save_for_backward(q, k, v, log_a, states)
        ctx.chunk_size = chunk_size
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dS: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_a, states = ctx.saved_tensors
        dq, dk, dv, _, dlog_a, dS = gradients(q, k, v, None, log_a, states, None, None, dy, dS, ctx.chunk_size)
        return dq, dk, dv, dlog_a, dS, None


class _Delta(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        y, end, states, u, inverse = _read(q, k, v, beta, log_a, S, chunk_size)
        ctx.save_for_backward(q, k, v, beta, log_a, states, u, inverse)
        ctx.chunk_size = chunk_size
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dS: Tensor) -> tuple[Tensor | None, ...]:
        return *gradients(*ctx.saved_tensors, dy, dS, ctx.chunk_size), None


def _length(chunk_size: int, key_size: int) -> int:
    most = 64 if key_size <= 64 else 32 if key_size <= 128 else 16
    return max(16, min(most, 1 << (chunk_size.bit_length() - 1)))


def _read(q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_a: Tensor, S: Tensor, L: int) -> tuple[Tensor, ...]:
    """y [B, H, T, V], the matrix at the end, those at the chunks' starts [n, B H, K, V], u [n, B H, L, V] and (I + A)^-1 [n, B H, L, L]."""
    (B, H, T, V), G, K = v.shape, k.shape[1], k.shape[-1]
    q, k, v, log_a = (z.transpose(1, 2).contiguous() for z in (q, k, v, log_a))
    n = triton.cdiv(T, L)
    delta = beta is not None
    y, S = S.new_empty(B, T, H, V), S.contiguous()
    states, end = S.new_empty(n, B * H, K, V), torch.empty_like(S)
    u = S.new_empty((n, B * H, L, V) if delta else (1,))
    W = S.new_empty((n, B * H, L, K) if delta else (1,))
    inverse = S.new_empty((n, B * H, L, L) if delta else (1,))
    sizes = sizes_of(K, L)
    blocks = triton.cdiv(V, sizes["BV"])
    with torch.cuda.device_of(S):  # Triton starts its kernels on the current device
        if beta is not None:
            _prepare[(n, B * H)](k, v, beta.transpose(1, 2).contiguous(), log_a, u, W, inverse, T, H, K, V, **sizes)
        both = sizes | {"DELTA": delta}
        _states[(B * H, blocks)](k, v, log_a, W, u, S, states, end, T, H, G, K, V, **both)
        _outputs[(n, B * H, blocks)](q, k, v, log_a, u, states, y, T, H, G, K, V, **both)
    return y.transpose(1, 2), end, states, u, inverse


@triton.jit
@no_type_check
def _prepare(
    k, v, beta, log_a, u, W, solved, T, H, K, V,
    L: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, d, e = tl.arange(0, L), tl.arange(0, BK), tl.arange(0, BV)
    t = chunk * L + i
    there, token = t < T, (stream // H * T + t) * H + stream % H
    c = tl.cumsum(tl.load(log_a + token, mask=there, other=0.0).to(tl.float32), axis=0)
    b = tl.load(beta + token, mask=there, other=0.0).to(tl.float32)
    key = there[:, None] & (d < K)[None, :]
    keys = tl.load(k + token[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
    writes = keys * b[:, None]
    earlier = i[:, None] > i[None, :]
    A = tl.dot(writes, tl.trans(keys), input_precision=PRECISION)
    A = tl.where(earlier, A * tl.exp(tl.where(earlier, c[:, None] - c[None, :], 0.0)), 0.0)
    inverse = tl.where(i[:, None] == i[None, :], 1.0, 0.0)
    for row in range(1, L):
        coefficients = tl.sum(tl.where((i == row)[:, None], A, 0.0), axis=0)  # A[row]
        known = tl.sum(coefficients[:, None] * inverse, axis=0)  # of the rows before, which are solved
        inverse = tl.where((i == row)[:, None], inverse - known[None, :], inverse)
    start = (chunk * tl.num_programs(1) + stream) * L
    tl.store(solved + (start + i)[:, None] * L + i[None, :], inverse)
    left = tl.dot(inverse, writes * tl.exp(c)[:, None], input_precision=PRECISION)
    tl.store(W + (start + i)[:, None] * K + d[None, :], left, mask=(d < K)[None, :])
    for first in range(0, V, BV):
        value = (first + e) < V
        values = tl.load(v + token[:, None] * V + (first + e)[None, :], mask=there[:, None] & value[None, :], other=0.0).to(tl.float32)
        solved_values = tl.dot(inverse, values * b[:, None], input_precision=PRECISION)
        tl.store(u + (start + i)[:, None] * V + (first + e)[None, :], solved_values, mask=value[None, :])


@triton.jit
@no_type_check
def _states(
    k, v, log_a, W, u, begin, states, end, T, H, G, K, V,
    DELTA: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    stream, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BV + tl.arange(0, BV)
    i, d = tl.arange(0, L), tl.arange(0, BK)
    batch, head = stream // H, stream % H
    inside = (d < K)[:, None] & (e < V)[None, :]
    place = (stream * K + d)[:, None] * V + e[None, :]
    streams = tl.num_programs(0).to(tl.int64)
    S = tl.load(begin + place, mask=inside, other=0.0)
    for chunk in range(tl.cdiv(T, L)):
        t = chunk * L + i
        there = t < T
        tl.store(states + chunk * streams * K * V + place, S, mask=inside)
        gates = tl.load(log_a + (batch * T + t) * H + head, mask=there, other=0.0).to(tl.float32)
        total = tl.sum(gates, axis=0)
        fade = tl.exp(total - tl.cumsum(gates, axis=0))
        row = (batch * T + t) * G + head // (H // G)
        keys = tl.load(k + row[None, :] * K + d[:, None], mask=there[None, :] & (d < K)[:, None], other=0.0).to(tl.float32)
        if DELTA:
            rows = (chunk * streams + stream) * L + i
            value = (e < V)[None, :]
            left = tl.load(W + rows[:, None] * K + d[None, :], mask=(d < K)[None, :], other=0.0)
            writes = tl.load(u + rows[:, None] * V + e[None, :], mask=value, other=0.0) - tl.dot(left, S, input_precision=PRECISION)
            tl.store(u + rows[:, None] * V + e[None, :], writes, mask=value)
        else:
            token = (batch * T + t) * H + head
            writes = tl.load(v + token[:, None] * V + e[None, :], mask=there[:, None] & (e < V)[None, :], other=0.0).to(tl.float32)
        S = S * tl.exp(total) + tl.dot(keys * fade[None, :], writes, input_precision=PRECISION)
    tl.store(end + place, S, mask=inside)


@triton.jit
@no_type_check
def _outputs(
    q, k, v, log_a, u, states, y, T, H, G, K, V,
    DELTA: tl.constexpr, L: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    chunk, stream = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, d, e = tl.arange(0, L), tl.arange(0, BK), tl.program_id(2) * BV + tl.arange(0, BV)
    batch, head, streams = stream // H, stream % H, tl.num_programs(1).to(tl.int64)
    t = chunk * L + i
    there, token, row = t < T, (batch * T + t) * H + head, (batch * T + t) * G + head // (H // G)
    c = tl.cumsum(tl.load(log_a + token, mask=there, other=0.0).to(tl.float32), axis=0)
    key = there[:, None] & (d < K)[None, :]
    queries = tl.load(q + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
    keys = tl.load(k + row[:, None] * K + d[None, :], mask=key, other=0.0).to(tl.float32)
    seen = i[:, None] >= i[None, :]
    gates = tl.exp(tl.where(seen, c[:, None] - c[None, :], float("-inf")))
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * gates
    if DELTA:
        rows = (chunk * streams + stream) * L + i
        writes = tl.load(u + rows[:, None] * V + e[None, :], mask=(e < V)[None, :], other=0.0)
    else:
        writes = tl.load(v + token[:, None] * V + e[None, :], mask=there[:, None] & (e < V)[None, :], other=0.0).to(tl.float32)
    place = ((chunk * streams + stream) * K + d)[:, None] * V + e[None, :]
    S = tl.load(states + place, mask=(d < K)[:, None] & (e < V)[None, :], other=0.0)
    read = tl.dot(scores, writes, input_precision=PRECISION)
    read += tl.dot(queries, S, input_precision=PRECISION) * tl.exp(c)[:, None]
    tl.store(y + token[:, None] * V + e[None, :], read, mask=there[:, None] & (e < V)[None, :])

"""Elementwise recurrences in Triton, forward and backward: the equations of `ops/hadamard.py`.

    scan        M_t = C_t * M_(t-1) + U_t: a program holds some elements of one stream and walks along the tokens; back it walks
                D_t = dM_t + C_(t+1) D_(t+1), dU_t = D_t, dC_t = D_t M_(t-1)
    hadamard    the memory: a program holds all keys of some columns of one stream's matrix. C and U are never in memory, nor is M but at
                the start of every chunk; back, a chunk's matrices are made again, into a buffer of one chunk

What sums over the columns (the gradients of q, k and c) leaves each program as a part of its own, and torch adds the parts: the same
bits in every run. float32; tested under Triton's interpreter and compiled for sm_80 and sm_90 (`tests/ops/test_triton_*.py`).
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["hadamard", "scan"]

ELEMENTS = 256  # of a stream, held by a program of the scan
MATRIX = 4096  # elements of a matrix, held by a program of the memory


def scan(C: Tensor, U: Tensor, M: Tensor, *, chunk_size: int) -> Tensor:
    """`scan_chunkwise`."""
    return _Scan.apply(C, U, M)


def hadamard(
    q: Tensor, k: Tensor, v: Tensor, c: Tensor, theta: Tensor, M: Tensor, *, limit: float | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """`hadamard_chunkwise`."""
    return _Hadamard.apply(q, k, v, c, theta, M, limit, chunk_size)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, C: Tensor, U: Tensor, M: Tensor) -> Tensor:
        C, U, M = (z.to(M.dtype).contiguous() for z in (C, U, M))
        after, (B, T) = torch.empty_like(U), U.shape[:2]
        elements = M[0].numel()
        with torch.cuda.device_of(M):  # Triton starts its kernels on the current device
            _scan[(B, triton.cdiv(elements, ELEMENTS))](C, U, M, after, T, elements, BLOCK=ELEMENTS)
        ctx.save_for_backward(C, M, after)
        return after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, ...]:
        C, M, after = ctx.saved_tensors
        (B, T), elements = C.shape[:2], M[0].numel()
        dC, dU, dM = (torch.empty_like(z) for z in (C, C, M))
        with torch.cuda.device_of(M):
            _scan_back[(B, triton.cdiv(elements, ELEMENTS))](C, M, after, d.contiguous(), dC, dU, dM, T, elements, BLOCK=ELEMENTS)
        return dC, dU, dM


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, c: Tensor, theta: Tensor, M: Tensor, limit: float | None, L: int
    ) -> tuple[Tensor, Tensor]:
        q, k, v, c, theta, M = (z.to(M.dtype).contiguous() for z in (q, k, v, c, theta, M))
        (B, T, K), V = k.shape, v.shape[-1]
        starts = M.new_empty(B, triton.cdiv(T, L), K, V)
        y, end = torch.empty_like(v), torch.empty_like(M)
        sizes = _sizes(K, V)
        at: dict[str, Any] = {"limit": limit or 0.0, "LIMITED": limit is not None}
        with torch.cuda.device_of(M):
            _hadamard[(B, triton.cdiv(V, sizes["BV"]))](q, k, v, c, theta, M, starts, y, end, T, K, V, L, **at, **sizes)
        ctx.save_for_backward(q, k, v, c, theta, starts)
        ctx.at, ctx.L = at, L
        return y, end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, c, theta, starts = ctx.saved_tensors
        (B, T, K), V, L = k.shape, v.shape[-1], ctx.L
        sizes = _sizes(K, V)
        blocks = triton.cdiv(V, sizes["BV"])
        dq, dk, dc = (k.new_empty(blocks, B, T, K) for _ in range(3))
        dv, dtheta, dM = torch.empty_like(v), torch.empty_like(v), torch.empty_like(d_end, memory_format=torch.contiguous_format)
        before = k.new_empty(B, min(L, T), K, V)
        given = (q, k, v, c, theta, starts, dy.contiguous(), d_end.contiguous(), before)
        with torch.cuda.device_of(d_end):
            _hadamard_back[(B, blocks)](*given, dq, dk, dv, dc, dtheta, dM, T, K, V, L, **ctx.at, **sizes)
        return dq.sum(0), dk.sum(0), dv, dc.sum(0), dtheta, dM, None, None


def _sizes(K: int, V: int) -> dict[str, Any]:
    BK = triton.next_power_of_2(K)
    return {"BK": BK, "BV": max(1, min(triton.next_power_of_2(V), MATRIX // BK))}


@triton.jit
@no_type_check
def _scan(C, U, M, after, T, E, BLOCK: tl.constexpr):
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    stream, inside = tl.program_id(0).to(tl.int64), e < E
    state = tl.load(M + stream * E + e, mask=inside, other=0.0)
    for t in range(T):
        at = (stream * T + t) * E + e
        state = tl.load(C + at, mask=inside, other=0.0) * state + tl.load(U + at, mask=inside, other=0.0)
        tl.store(after + at, state, mask=inside)


@triton.jit
@no_type_check
def _scan_back(C, M, after, d, dC, dU, dM, T, E, BLOCK: tl.constexpr):
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    stream, inside = tl.program_id(0).to(tl.int64), e < E
    first = tl.load(M + stream * E + e, mask=inside, other=0.0)
    later = tl.zeros([BLOCK], dtype=tl.float32)  # C_(t+1) D_(t+1)
    for back in range(T):
        t = T - 1 - back
        at = (stream * T + t) * E + e
        D = tl.load(d + at, mask=inside, other=0.0) + later
        second = at >= (stream * T + 1) * E  # t > 0
        before = tl.where(second, tl.load(after + at - E, mask=inside & second, other=0.0), first)
        tl.store(dU + at, D, mask=inside)
        tl.store(dC + at, D * before, mask=inside)
        later = tl.load(C + at, mask=inside, other=0.0) * D
    tl.store(dM + stream * E + e, later, mask=inside)


@triton.jit
@no_type_check
def _calibration(c, theta):
    return 2.0 / (1.0 + tl.exp(-2.0 * c[:, None] * theta[None, :]))  # e^inf is inf, and 2 / inf is 0


@triton.jit
@no_type_check
def _held(M, limit, LIMITED: tl.constexpr):
    if LIMITED:
        M = tl.minimum(tl.maximum(M, -limit), limit)
    return M


@triton.jit
@no_type_check
def _hadamard(
    q, k, v, c, theta, begin, starts, y, end, T, K, V, L, limit, LIMITED: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    stream, d, e = tl.program_id(0).to(tl.int64), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    key, value = d < K, e < V
    place, inside = d[:, None] * V + e[None, :], key[:, None] & value[None, :]
    M = tl.load(begin + stream * K * V + place, mask=inside, other=0.0)
    for t in range(T):
        if t % L == 0:
            tl.store(starts + (stream * tl.cdiv(T, L) + t // L) * K * V + place, M, mask=inside)
        of_key, of_value = (stream * T + t) * K + d, (stream * T + t) * V + e
        C = _calibration(tl.load(c + of_key, mask=key, other=0.0), tl.load(theta + of_value, mask=value, other=0.0))
        U = tl.load(k + of_key, mask=key, other=0.0)[:, None] * tl.load(v + of_value, mask=value, other=0.0)[None, :]
        M = _held(C * M + U, limit, LIMITED)
        tl.store(y + of_value, tl.sum(tl.load(q + of_key, mask=key, other=0.0)[:, None] * M, axis=0), mask=value)
    tl.store(end + stream * K * V + place, M, mask=inside)


@triton.jit
@no_type_check
def _hadamard_back(
    q, k, v, c, theta, starts, dy, d_end, before, dq, dk, dv, dc, dtheta, dM, T, K, V, L, limit,
    LIMITED: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    stream, d, e = tl.program_id(0).to(tl.int64), tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    key, value = d < K, e < V
    place, inside = d[:, None] * V + e[None, :], key[:, None] & value[None, :]
    part = (tl.program_id(1) * tl.num_programs(0) + stream) * T * K
    chunks, buffer = tl.cdiv(T, L), stream * tl.minimum(L, T) * K * V
    later = tl.load(d_end + stream * K * V + place, mask=inside, other=0.0)  # C_(t+1) D_(t+1)
    for back in range(chunks):
        chunk = chunks - 1 - back
        first, length = chunk * L, tl.minimum(L, T - chunk * L)
        M = tl.load(starts + (stream * chunks + chunk) * K * V + place, mask=inside, other=0.0)
        tl.debug_barrier()  # the buffer has been read
        for i in range(length):
            tl.store(before + buffer + i * K * V + place, M, mask=inside)
            of_key, of_value = (stream * T + first + i) * K + d, (stream * T + first + i) * V + e
            C = _calibration(tl.load(c + of_key, mask=key, other=0.0), tl.load(theta + of_value, mask=value, other=0.0))
            U = tl.load(k + of_key, mask=key, other=0.0)[:, None] * tl.load(v + of_value, mask=value, other=0.0)[None, :]
            M = _held(C * M + U, limit, LIMITED)
        tl.debug_barrier()  # the buffer has been written
        for i in range(length):
            t = first + length - 1 - i
            of_key, of_value = (stream * T + t) * K + d, (stream * T + t) * V + e
            keys, values = tl.load(k + of_key, mask=key, other=0.0), tl.load(v + of_value, mask=value, other=0.0)
            rate, direction = tl.load(c + of_key, mask=key, other=0.0), tl.load(theta + of_value, mask=value, other=0.0)
            dread = tl.load(dy + of_value, mask=value, other=0.0)
            C = _calibration(rate, direction)
            M_before = tl.load(before + buffer + (t - first) * K * V + place, mask=inside, other=0.0)
            M = _held(C * M_before + keys[:, None] * values[None, :], limit, LIMITED)
            D = tl.load(q + of_key, mask=key, other=0.0)[:, None] * dread[None, :] + later
            if LIMITED:
                D = tl.where(tl.abs(M) < limit, D, 0.0)  # an element held at the limit hands nothing back
            dx = D * M_before * C * (2.0 - C)
            tl.store(dq + part + t * K + d, tl.sum(M * dread[None, :], axis=1), mask=key)
            tl.store(dk + part + t * K + d, tl.sum(D * values[None, :], axis=1), mask=key)
            tl.store(dv + of_value, tl.sum(D * keys[:, None], axis=0), mask=value)
            tl.store(dc + part + t * K + d, tl.sum(dx * direction[None, :], axis=1), mask=key)
            tl.store(dtheta + of_value, tl.sum(dx * rate[:, None], axis=0), mask=value)
            later = C * D
    tl.store(dM + stream * K * V + place, later, mask=inside)

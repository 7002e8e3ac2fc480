"""Elementwise recurrences over a matrix: every element is multiplied and added to, and none sees another.

Source: Stable Hadamard Memory (Le et al., arXiv:2410.10132).

    M_t = C_t * M_{t-1} + U_t                                   elementwise
    C_t = 1 + tanh(c_t theta_t^T),   U_t = k_t v_t^T            calibration in (0, 2), and what is written
    y_t = M_t^T q_t                                             read
    M_t = clip(M_t, -limit, limit)                              where there is a limit: no gradient passes an element it holds

M has keys along its rows and values along its columns. 1 + tanh(x) is computed as 2 sigmoid(2 x): the same function, without the
loss of digits near C = 0, and ten times as fast on a CPU.

    scan_recurrent        the definition of the general scan, any C and U
    scan_chunkwise        doubling inside chunks: (C1, U1) then (C2, U2) is (C1 C2, C2 U1 + U2); no product is ever divided by
    hadamard_recurrent    the definition of the memory's scan, token by token
    hadamard_chunkwise    all C and U of a chunk at once, then one multiply-add a token; the backward pass makes them again

Letters: B streams, T tokens, K keys, V values.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.ops.kernels.choice import kernel_for

__all__ = ["hadamard_chunkwise", "hadamard_recurrent", "scan_chunkwise", "scan_recurrent"]

Keys = Float[Tensor, "B T K"]
Values = Float[Tensor, "B T V"]
Matrix = Float[Tensor, "B K V"]
Elements = Float[Tensor, "B T *S"]


def scan_recurrent(C: Elements, U: Elements, M: Float[Tensor, "B *S"]) -> Elements:
    """M after every token: the form every other form is tested against."""
    after = []
    for c, u in zip(C.unbind(1), U.unbind(1), strict=True):
        M = c * M + u
        after.append(M)
    return torch.stack(after, dim=1)


def scan_chunkwise(C: Elements, U: Elements, M: Float[Tensor, "B *S"], *, chunk_size: int = 16) -> Elements:
    """Equal to `scan_recurrent`, in log2(chunk_size) parallel levels a chunk.

    Products of C run over a chunk at most: with C below 2 they stay below 2^chunk_size.
    """
    if (kernel := kernel_for("scan", U, U.flatten(2), M)) is not None:
        return kernel(C, U, M, chunk_size=chunk_size)
    after = []
    for c, u in zip(C.split(chunk_size, 1), U.split(chunk_size, 1), strict=True):
        reach = 1
        while reach < c.shape[1]:
            shape = [0, 0] * (c.ndim - 2) + [reach, 0]  # before its first token a chunk has multiplied by 1 and added 0
            u = c * F.pad(u[:, :-reach], shape) + u
            c = c * F.pad(c[:, :-reach], shape, value=1.0)
            reach *= 2
        after.append(torch.addcmul(u, c, M[:, None].expand_as(c)))
        M = after[-1][:, -1]
    return torch.cat(after, dim=1)


def hadamard_recurrent(
    q: Keys, k: Keys, v: Values, c: Keys, theta: Values, M: Matrix, *, limit: float | None = None
) -> tuple[Values, Matrix]:
    """The definition: outputs, and the matrix after the last token."""
    y = []
    for t in range(q.shape[1]):
        C = 1 + (c[:, t, :, None] * theta[:, t, None, :]).tanh()
        M = C * M + k[:, t, :, None] * v[:, t, None, :]
        M = M if limit is None else M.clamp(-limit, limit)
        y.append((q[:, t, None, :] @ M)[:, 0])
    return torch.stack(y, dim=1), M


def hadamard_chunkwise(
    q: Keys, k: Keys, v: Values, c: Keys, theta: Values, M: Matrix, *, limit: float | None = None, chunk_size: int = 16
) -> tuple[Values, Matrix]:
    """Equal to `hadamard_recurrent`. What is kept for the backward pass is one matrix a chunk, not one a token."""
    if (kernel := kernel_for("hadamard", k, v, M)) is not None:
        return kernel(q, k, v, c, theta, M, limit=limit, chunk_size=chunk_size)
    return _Hadamard.apply(q, k, v, c, theta, M, limit, chunk_size)


def _calibration(c: Tensor, theta: Tensor) -> Tensor:
    return ((2 * c)[..., None] * theta[..., None, :]).sigmoid_().mul_(2)


def _states(C: Tensor, k: Tensor, v: Tensor, M: Tensor, limit: float | None) -> Tensor:
    """M after every token of a chunk, [B, L, K, V]."""
    after = k[..., None] * v[..., None, :]
    for decay, state in zip(C.unbind(1), after.unbind(1), strict=True):
        torch.addcmul(state, decay, M, out=state)
        if limit is not None:
            state.clamp_(-limit, limit)
        M = state
    return after


def _over_values(M: Tensor, values: Tensor) -> Tensor:
    """M times a vector over its columns, as a product and a sum along rows: three times as fast as many small products."""
    return (M * values[..., None, :]) @ M.new_ones(M.shape[-1])


def _over_keys(M: Tensor, keys: Tensor) -> Tensor:
    return (keys[..., None, :] @ M)[..., 0, :]


class _Hadamard(torch.autograd.Function):
    """With D_t = d loss / d M_t:  D_t = q_t dy_t^T + C_{t+1} D_{t+1};  dU_t = D_t,  dC_t = D_t M_{t-1},  dx = dC C (2 - C)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, c: Tensor, theta: Tensor, M: Tensor, limit: Any, size: int
    ) -> tuple[Tensor, Tensor]:
        y, starts = [], []
        for q_l, k_l, v_l, c_l, theta_l in zip(*(t.split(size, 1) for t in (q, k, v, c, theta)), strict=True):
            starts.append(M)
            after = _states(_calibration(c_l, theta_l), k_l, v_l, M, limit)
            y.append(_over_keys(after, q_l))
            M = after[:, -1].clone()
        ctx.limit, ctx.size = limit, size
        ctx.save_for_backward(q, k, v, c, theta, *starts)
        return torch.cat(y, dim=1), M

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, D: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, c, theta, *starts = ctx.saved_tensors
        chunks = list(zip(*(t.split(ctx.size, 1) for t in (q, k, v, c, theta, dy)), starts, strict=True))
        grads = []
        for q_l, k_l, v_l, c_l, theta_l, dy_l, M in reversed(chunks):
            C = _calibration(c_l, theta_l)
            after = _states(C, k_l, v_l, M, ctx.limit)
            Ds = q_l[..., None] * dy_l[..., None, :]
            Ds[:, -1] += D
            for t in range(C.shape[1] - 1, -1, -1):
                if t + 1 < C.shape[1]:
                    torch.addcmul(Ds[:, t], C[:, t + 1], Ds[:, t + 1], out=Ds[:, t])
                if ctx.limit is not None:  # an element held at the limit hands nothing back
                    Ds[:, t] *= after[:, t].abs() < ctx.limit
            D = C[:, 0] * Ds[:, 0]
            dq, dv, dk = _over_values(after, dy_l), _over_keys(Ds, k_l), _over_values(Ds, v_l)
            before = torch.cat([M[:, None], after[:, :-1]], dim=1)
            dx = before.mul_(Ds).mul_(C).mul_(2 - C)
            grads.append((dq, dk, dv, _over_values(dx, theta_l), _over_keys(dx, c_l)))
        return *(torch.cat(parts[::-1], dim=1) for parts in zip(*grads, strict=True)), D, None, None

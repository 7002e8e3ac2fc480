"""Short causal convolution of every channel with its own last few values, and the same followed by SiLU.

    z_t = b + sum_i w_i x_{t-W+1+i}          per channel, W taps; what came before x is `tail`
    y_t = z_t, or z_t sigmoid(z_t)

Written as W shifted multiply-adds over blocks of time that stay in the processor's cache: on one core (AMD EPYC, AVX-512),
[4, 2048, 768] float32 and 4 taps, 4 times faster forward and 5 times forward and backward than the depthwise `conv1d` of torch.
z is never kept: the backward pass computes it again.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from memseq.ops.precision import unrounded

__all__ = ["short_conv", "short_conv_silu"]

Channels = Float[Tensor, "B T C"]
BLOCK = 2**17  # elements of a block: four of them fit a core's second cache


def short_conv(
    x: Channels, tail: Float[Tensor, "B taps_before C"], weight: Float[Tensor, "C taps"], bias: Float[Tensor, "C"] | None = None
) -> Channels:
    """z, in the dtype of x; computed in float32 at least. Differentiable once, in everything."""
    return _apply(x, tail, weight, bias, silu=False)


def short_conv_silu(
    x: Channels, tail: Float[Tensor, "B taps_before C"], weight: Float[Tensor, "C taps"], bias: Float[Tensor, "C"] | None = None
) -> Channels:
    """silu(z), in the dtype of x; computed in float32 at least. Differentiable once, in everything."""
    return _apply(x, tail, weight, bias, silu=True)


def _apply(x: Tensor, tail: Tensor, weight: Tensor, bias: Tensor | None, *, silu: bool) -> Tensor:
    inputs = (x, tail, weight, bias)
    with unrounded(x):
        if torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in inputs):
            return _ShortConv.apply(*inputs, silu)
        return _forward(*inputs, silu)


def _windows(x: Tensor, tail: Tensor, taps: int, dtype: torch.dtype):
    """Blocks of time: where each begins and ends, and what its taps see, the `taps - 1` values before it first."""
    B, T, C = x.shape
    size = max(16, BLOCK // (B * C)) if x.device.type == "cpu" else T
    for start in range(0, T, size):
        end, before = min(T, start + size), start - taps + 1
        seen = x[:, max(0, before) : end].to(dtype)
        if before < 0:
            seen = torch.cat([tail[:, before:].to(dtype), seen], dim=1)
        yield start, end, seen


def _mix(seen: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    L = seen.shape[1] - len(taps) + 1
    z = seen[:, :L] * taps[0] if bias is None else torch.addcmul(bias, seen[:, :L], taps[0])
    for i in range(1, len(taps)):
        z.addcmul_(seen[:, i : i + L], taps[i])
    return z


def _forward(x: Tensor, tail: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    taps, bias = weight.T.to(dtype).contiguous(), None if bias is None else bias.to(dtype)
    y = x.new_empty(x.shape)
    for start, end, seen in _windows(x, tail, len(taps), dtype):
        z = _mix(seen, taps, bias)
        y[:, start:end] = torch.nn.functional.silu(z, inplace=True) if silu else z
    return y


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tail, weight, bias, silu):
        ctx.save_for_backward(x, tail, weight, bias)
        ctx.silu = silu
        return _forward(x, tail, weight, bias, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, tail, weight, bias = ctx.saved_tensors
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            taps, offset = weight.T.to(dtype).contiguous(), None if bias is None else bias.to(dtype)
            W = len(taps)
            dx = torch.zeros_like(x, dtype=dtype, memory_format=torch.contiguous_format)
            dtail, dtaps, dbias = torch.zeros_like(tail, dtype=dtype), torch.zeros_like(taps), torch.zeros_like(taps[0])
            for start, end, seen in _windows(x, tail, W, dtype):
                dz = dy[:, start:end].to(dtype)
                if ctx.silu:
                    dz = torch.ops.aten.silu_backward(dz, _mix(seen, taps, offset))
                dbias += dz.sum((0, 1))
                for i in range(W):
                    dtaps[i] += (dz * seen[:, i : i + end - start]).sum((0, 1))
                    first = start - W + 1 + i  # the token that tap i sees first
                    n = min(max(0, -first), end - start)  # so many of its tokens lie in the tail
                    if n:
                        dtail[:, W - 1 + first : W - 1 + first + n].addcmul_(dz[:, :n], taps[i])
                    if n < end - start:
                        dx[:, first + n : first + end - start].addcmul_(dz[:, n:], taps[i])
        return dx, dtail, dtaps.T, None if bias is None else dbias, None

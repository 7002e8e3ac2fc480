"""Rows of length one, and rows whose mean square is one; each with a gradient in three passes, where that of torch's takes eight.

unit    y = x / max(|x|, eps)                dx = (dy - y (y . dy)) / |x|, or dy / eps where |x| is smaller
rms     y = x / sqrt(mean x^2 + eps)         dx = (dy - y mean(y dy)) / sqrt(mean x^2 + eps)
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rms", "unit"]

Rows = Float[Tensor, "*rows K"]


def unit(x: Rows, eps: float = 1e-6) -> Rows:
    """Each row divided by its length; contiguous. Differentiable once."""
    return _Unit.apply(x, eps)


def rms(x: Rows, eps: float = 1e-6) -> Rows:
    """Each row divided by the root of its mean square; contiguous. Differentiable once."""
    return _RMS.apply(x, eps)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=eps).reciprocal_()
        y = torch.mul(x, scale, out=x.new_empty(x.shape))
        ctx.save_for_backward(y, scale)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        y, scale = ctx.saved_tensors
        along = (y * dy).sum(-1, keepdim=True).masked_fill_(scale * ctx.eps >= 1, 0.0)  # a row shorter than eps meets a constant
        return torch.addcmul(dy, y, along, value=-1).mul_(scale), None


class _RMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = torch.mul(x, scale, out=x.new_empty(x.shape))
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        y, scale = ctx.saved_tensors
        return torch.addcmul(dy, y, (y * dy).mean(-1, keepdim=True), value=-1).mul_(scale), None

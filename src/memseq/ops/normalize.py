"""Rows of length one, and rows whose mean square is one; each with a gradient in three passes, where that of torch's takes eight.

unit    y = x / max(|x|, eps)                dx = (dy - y (y . dy)) / |x|, or dy / eps where |x| is smaller
rms     y = x / sqrt(mean x^2 + eps)         dx = (dy - y mean(y dy)) / sqrt(mean x^2 + eps)

And rows of mean zero and mean square one, with the product by their own derivative, which has a gradient again (for a network that is
trained while it reads, `ops/fast_network.py`):

standard         y = s (x - mean x),  s = 1 / sqrt(var x + eps)      dx = s P dy - ds s^2 y / K,  P z = z - mean z - y mean(y z)
standard_back    u = s P g                                           dg = s P du,  ds = du . u / s,  dy = -s (du mean(y g) + g mean(y du))
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rms", "standard", "standard_back", "unit"]

Rows = Float[Tensor, "*rows K"]


def unit(x: Rows, eps: float = 1e-6) -> Rows:
    """Each row divided by its length; contiguous. Differentiable once."""
    return _Unit.apply(x, eps)


def rms(x: Rows, eps: float = 1e-6) -> Rows:
    """Each row divided by the root of its mean square; contiguous. Differentiable once."""
    return _RMS.apply(x, eps)


def standard(x: Rows, eps: float = 1e-6) -> tuple[Rows, Float[Tensor, "*rows 1"]]:
    """Each row less its mean and divided by its standard deviation, and one over that. Differentiable once."""
    return _Standard.apply(x, eps)


def standard_back(g: Rows, y: Rows, scale: Float[Tensor, "*rows 1"]) -> Rows:
    """The gradient in x of `standard`, from that in y. Differentiable once."""
    return _StandardBack.apply(g, y, scale)


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


class _Standard(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps):
        y = x - x.mean(-1, keepdim=True)
        scale = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y.mul_(scale)
        ctx.save_for_backward(y, scale)
        ctx.set_materialize_grads(False)
        return y, scale

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, ds):
        y, scale = ctx.saved_tensors
        dx = None if dy is None else _projected(dy, y).mul_(scale)
        if ds is None:
            return dx, None
        along = ds * scale.square() / -y.shape[-1]
        return (y * along if dx is None else dx.addcmul_(y, along)), None


class _StandardBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, y, scale):
        out = _projected(g, y).mul_(scale)
        ctx.save_for_backward(g, y, scale, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        g, y, scale, out = ctx.saved_tensors
        dy = (d * ((y * g).mean(-1, keepdim=True) * -scale)).addcmul_(g, (y * d).mean(-1, keepdim=True) * -scale)
        return _projected(d, y).mul_(scale), dy, (d * out).sum(-1, keepdim=True) / scale


def _projected(z, y):
    """z less its mean and what of it lies along y, whose mean is zero and mean square nearly one."""
    return torch.addcmul(z, y, (y * z).mean(-1, keepdim=True), value=-1).sub_(z.mean(-1, keepdim=True))

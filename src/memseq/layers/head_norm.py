"""What stands between a matrix memory and its output projection: an RMS norm over a head, with a gate after or before it.

    HeadNorm        w * rms(x)                    DeltaNet
    NormThenGate    w * rms(x) * silu(z)          Gated DeltaNet, GLA, RetNet
    GateThenNorm    w * rms(x * silu(z))          Mamba-2, over a group of channels
                    rms(x) = x / sqrt(mean x^2 + eps)

over the last axis, in float32 at least; the result has the dtype of the gate, or stays as wide as it was computed. And `unit`,
x / sqrt(sum x^2 + eps), for the keys of a delta rule.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.ops.normalize import rms
from memseq.ops.precision import unrounded

__all__ = ["GateThenNorm", "HeadNorm", "NormThenGate", "unit"]


def unit(x: Float[Tensor, "... F"], eps: float = 1e-6) -> Float[Tensor, "... F"]:
    """x scaled to length one, in float32 at least; shorter than sqrt(eps), it fades to zero."""
    x = _wide(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class HeadNorm(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        with unrounded(x):
            x = _wide(x)
            return rms(x, self.eps) * self.weight.to(x.dtype)


class NormThenGate(nn.Module):
    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "... F"], gate: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        with unrounded(x):
            x = _wide(x)
            return (rms(x, self.eps) * self.weight.to(x.dtype) * F.silu(gate.to(x.dtype))).to(gate.dtype)


class GateThenNorm(nn.Module):
    """The last axis is split into `n_groups` that are normed apart."""

    def __init__(self, size: int, n_groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps, self.n_groups = eps, n_groups
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "... F"], gate: Float[Tensor, "... F"]) -> Float[Tensor, "... F"]:
        with unrounded(x):
            x = _wide(x)
            x = (x * F.silu(gate.to(x.dtype))).unflatten(-1, (self.n_groups, -1))
            return (rms(x, self.eps).flatten(-2) * self.weight.to(x.dtype)).to(gate.dtype)

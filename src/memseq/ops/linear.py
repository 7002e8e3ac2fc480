"""Matrix products by the library that is fast on this processor.

    y = x W^T + b           dx = dy W           dW = dy^T x           db = sum dy

torch hands float32 products on a CPU to MKL. On an AMD processor with AVX-512 MKL uses half the width of the vectors, and oneDNN,
which torch carries too (it serves bfloat16), all of it: 50 to 100 against 180 to 230 GFLOP/s on one core of an EPYC. Only there,
and only for products that are large enough to repay a call through Python, is the product oneDNN's; anywhere else, in any other
dtype and under autocast it is torch's own. Both compute the same sums in float32.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["linear", "onednn_is_faster"]

ROWS = 16  # fewer rows than this are bound by reading the weights, which oneDNN does faster only where there are many outputs
WIDE = 1 << 17  # weights that are many
PRODUCTS = 1 << 21  # multiplications below which the call costs what it saves
PLAIN = (Tensor, nn.Parameter)  # a sharded, fake or quantised tensor is torch's business


def linear(x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None) -> Float[Tensor, "*rows O"]:
    """x W^T + b."""
    if not _suited(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias)


@cache
def onednn_is_faster() -> bool:
    """Whether float32 products on this processor had better be oneDNN's."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if not torch.backends.mkl.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _suited(x: Tensor, weight: Tensor) -> bool:
    outputs, inputs = weight.shape
    products = x.numel() * outputs  # rows x outputs x inputs
    large = outputs > 2 * inputs and outputs * inputs >= WIDE if products < ROWS * outputs * inputs else products >= PRODUCTS
    if not large or not products:
        return False
    if x.dtype != torch.float32 or weight.dtype != torch.float32 or x.device.type != "cpu":
        return False
    if type(x) not in PLAIN or type(weight) not in PLAIN or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    watched = torch._C._len_torch_dispatch_stack() > 0  # one who counts operations or follows them knows torch's own
    return not watched and onednn_is_faster()


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are such products again and may be differentiated further."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y = torch.ops.mkldnn._linear_pointwise(_dense(x.flatten(0, -2)), _dense(weight), bias, "none", [], "")
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # ty: ignore[incompatible-method-override]
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        dx = linear(dy, weight.mT) if need_x else None
        x, dy = x.flatten(0, -2), dy.flatten(0, -2)
        wide = dy.shape[1] > x.shape[1]  # oneDNN's first factor is copied when it is transposed: let it be the narrower one
        dw = (linear(x.mT, dy.mT).mT if wide else linear(dy.mT, x.mT)) if need_weight else None
        return dx, dw, dy.sum(0) if need_bias else None


def _dense(matrix: Tensor) -> Tensor:
    """Rows or columns side by side in memory: for anything else, such as an expanded row, oneDNN has slow code only."""
    (rows, columns), (down, along) = matrix.shape, matrix.stride()
    return matrix if (along == 1 and down >= columns) or (down == 1 and along >= rows) else matrix.contiguous()

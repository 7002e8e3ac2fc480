"""Linear layers whose products go to the fast library, and their matrix where a memory multiplies in an order of its own."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.ops.linear import linear

__all__ = ["Linear", "weight_of"]


class Linear(nn.Linear):
    """torch's layer, its parameters and its numbers; the product is `ops/linear.py`'s."""

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        return linear(x, self.weight, self.bias)


def weight_of(layer: nn.Module) -> Float[Tensor, "O I"]:
    """W of a layer that computes x W^T.

    Fine-tuning methods such as LoRA put a module of their own in a layer's place, whose `weight` is still the old one. What
    such a module computes is what counts: its matrix is read off from the unit vectors, and gradients pass.
    """
    weight = cast(Tensor, layer.weight)
    if type(layer) in (Linear, nn.Linear):
        return weight
    unit = torch.eye(weight.shape[-1], dtype=weight.dtype if weight.is_floating_point() else torch.float32, device=weight.device)
    return layer(unit).mT

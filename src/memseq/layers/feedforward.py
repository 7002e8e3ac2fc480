"""The two-layer perceptron that follows the memories of a block: W_2 gelu(W_1 x)."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.layers.linear import Linear

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """x [..., D] -> [..., D] through `hidden_size` GELU units."""

    def __init__(self, d_model: int, hidden_size: int) -> None:
        super().__init__()
        self.up = Linear(d_model, hidden_size)
        self.down = Linear(hidden_size, d_model)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return self.down(F.gelu(self.up(x)))

"""The projections of self-attention with rotary positions, shared by every memory that attends to tokens.

    q, k, v = W x        one product, split into H heads of K = D / H features
    q, k turned to their positions (`layers/rotary.py`)
    y = W_O concat_h(o)

No biases. Weights start normal with standard deviation D^-1/2. A model that was trained with one memory of this family can
be read by another: their parameters have the same names and shapes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.rotary import Rotary, rotate
from memseq.ops.linear import linear

__all__ = ["Heads", "check_heads"]


def check_heads(d_model: int, n_heads: int, dropout: float) -> None:
    """Raise `ConfigError` where the numbers of an attention layer make no sense."""
    if d_model < 1 or n_heads < 1 or d_model % n_heads:
        near = max(1, n_heads) * max(1, -(-d_model // max(1, n_heads)))
        raise ConfigError(
            f"d_model={d_model} cannot be split into n_heads={n_heads} equal heads;"
            f" use a multiple of {max(1, n_heads)}, such as d_model={near}"
        )
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must lie in [0, 1), got {dropout}")


class Heads(nn.Module):
    """Tokens to rotated queries, keys and values, and what was read back to the width of the model."""

    def __init__(self, d_model: int, n_heads: int, rotary_base: float) -> None:
        super().__init__()
        self.n_heads, self.key_size = n_heads, d_model // n_heads
        self.rotary = Rotary(self.key_size, rotary_base)
        self.inputs = Linear(d_model, 3 * d_model, bias=False)
        self.out = Linear(d_model, d_model, bias=False)
        for layer in (self.inputs, self.out):
            nn.init.normal_(layer.weight, std=d_model**-0.5)

    def forward(
        self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
        """Queries, keys and values of x at `positions` ([T], or [B, T] where rows differ); keys and values in the weights' dtype."""
        qk, v = self.inputs(x).view(*x.shape[:2], 3, self.n_heads, self.key_size).split([2, 1], dim=2)
        q, k = rotate(qk, self._turn(positions, x)).unbind(2)
        return q.transpose(1, 2), self._kept(k), self._kept(v.squeeze(2))

    def remember(
        self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
        """Keys and values alone, for those who do not read."""
        kv = linear(x, self.inputs.weight[x.shape[2] :]).unflatten(-1, (2, self.n_heads, self.key_size))
        k, v = kv.split(1, dim=2)
        return self._kept(rotate(k, self._turn(positions, x)).squeeze(2)), self._kept(v.squeeze(2))

    def write(self, o: Float[Tensor, "B H T K"]) -> Float[Tensor, "B T D"]:
        return self.out(o.transpose(1, 2).flatten(2))

    def _turn(self, positions: Tensor, x: Tensor) -> Tensor:
        return self.rotary(positions, x.dtype)[..., None, None, :]  # one angle for queries and keys of all heads

    def _kept(self, t: Tensor) -> Tensor:
        """Under autocast as without it, what a state keeps has the dtype of the weights."""
        return t.transpose(1, 2).to(self.inputs.weight.dtype)

    def empty_size(self, batch_size: int, length: int) -> tuple[int, int, int, int]:
        return batch_size, self.n_heads, length, self.key_size

    @property
    def like(self) -> torch.Tensor:
        """A tensor of the dtype and device of what is kept."""
        return self.inputs.weight

"""Rotary positions that stay exact in an endless stream.

Source: RoFormer (Su et al., arXiv:2104.09864). Neighbouring features are the real and imaginary part of K/2 complex numbers:

    x'_j = x_j exp(i p base^(-2j/K))      so that q'_p . k'_s depends on p - s alone

Angles are made in float64 from integer positions, so a product at position 1,000,000 is as good as one at position 0, and
a key is rotated once in its life: caches hold rotated keys.
"""

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError

__all__ = ["Rotary", "places", "rotate", "shared"]


def shared(position: Int[Tensor, "B"]) -> int | None:
    """The position that all rows share, or None where they differ."""
    rows = set(position.tolist())
    return rows.pop() if len(rows) == 1 else None


def places(position: Int[Tensor, "B"], length: int, device: torch.device) -> Int[Tensor, "*B T"]:
    """The positions of the next `length` tokens: [T] where all rows share one, [B, T] where they differ."""
    start = shared(position)
    if start is not None:
        return torch.arange(start, start + length, device=device)
    return position.to(device)[:, None] + torch.arange(length, device=device)


def rotate(x: Float[Tensor, "*rest K"], turn: Complex[Tensor, "*turns half"]) -> Float[Tensor, "*rest K"]:
    """x turned by unit complex numbers, computed in float32 at least."""
    precise = x.to(turn.real.dtype).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(precise) * turn).flatten(-2).to(x.dtype)


class Rotary(nn.Module):
    """Angles of the positions of a stream; no parameters."""

    frequencies: Tensor

    def __init__(self, key_size: int, base: float) -> None:
        super().__init__()
        if key_size % 2:
            raise ConfigError(f"rotary positions need an even number of features a head, got {key_size}; change d_model or n_heads")
        if base <= 1:
            raise ConfigError(f"rotary_base must be above 1, got {base}")
        self.key_size, self.base = key_size, base
        self.register_buffer("frequencies", self._fresh(None), persistent=False)

    def _fresh(self, device: torch.device | None) -> Tensor:
        return self.base ** (-torch.arange(0, self.key_size, 2, dtype=torch.float64, device=device) / self.key_size)

    def _apply(self, fn, recurse=True):
        """Follow the model to its device but not to its dtype: in bfloat16 the angles of far positions would be noise."""
        super()._apply(fn, recurse)
        self.frequencies = self._fresh(self.frequencies.device)
        return self

    def forward(self, positions: Int[Tensor, "*places"], dtype: torch.dtype) -> Complex[Tensor, "*places half"]:
        """exp(i p w), as complex numbers of a precision that serves features of `dtype`."""
        angles = positions[..., None] * self.frequencies
        turn = torch.polar(torch.ones((), dtype=angles.dtype, device=angles.device), angles)
        return turn.to(torch.complex128 if dtype == torch.float64 else torch.complex64)

"""Rotary positions that stay exact in an endless stream.

Source: RoFormer (Su et al., arXiv:2104.09864). Neighbouring features are the real and imaginary part of K/2 complex numbers:

    x'_j = x_j exp(i p base^(-2j/K))      so that q'_p . k'_s depends on p - s alone

Angles are made in float64 from integer positions, so a product at position 1,000,000 is as good as one at position 0, and
a key is rotated once in its life: caches hold rotated keys.
"""

from functools import lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError

__all__ = ["Rotary", "places", "rotate", "shared"]

MANY = 512  # positions beyond which their angles are not kept for the next layer


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
    precise = x.to(torch.float64 if turn.dtype == torch.complex128 else torch.float32).view(*x.shape[:-1], -1, 2)
    return torch.view_as_real(torch.view_as_complex(precise) * turn).view(x.shape).to(x.dtype)


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
        self.register_buffer("frequencies", _frequencies(key_size, base, None), persistent=False)

    def _apply(self, fn, recurse=True):
        """Follow the model to its device but not to its dtype: in bfloat16 the angles of far positions would be noise."""
        super()._apply(fn, recurse)
        self.frequencies = _frequencies(self.key_size, self.base, self.frequencies.device)
        return self

    def forward(self, positions: Int[Tensor, "*places"], dtype: torch.dtype) -> Complex[Tensor, "*places half"]:
        """exp(i p w), as complex numbers of a precision that serves features of `dtype`."""
        precision = torch.complex128 if dtype == torch.float64 else torch.complex64
        kept = type(positions) is Tensor and positions.device.type == "cpu" and positions.numel() <= MANY
        if kept and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            return _known(tuple(positions.flatten().tolist()), positions.shape, self.key_size, self.base, precision)
        return _turns(positions, self.frequencies, precision)


def _turns(positions: Tensor, frequencies: Tensor, precision: torch.dtype) -> Tensor:
    angles = positions[..., None] * frequencies
    return torch.polar(torch.ones((), dtype=angles.dtype, device=angles.device), angles).to(precision)


@lru_cache(maxsize=16)
def _known(positions: tuple[int, ...], shape: torch.Size, key_size: int, base: float, precision: torch.dtype) -> Tensor:
    """The layers of a model ask one after another for the same angles: they are made once."""
    here = torch.device("cpu")
    return _turns(torch.tensor(positions, dtype=torch.int64, device=here).view(shape), _frequencies(key_size, base, here), precision)


def _frequencies(key_size: int, base: float, device: torch.device | None) -> Tensor:
    return base ** (-torch.arange(0, key_size, 2, dtype=torch.float64, device=device) / key_size)

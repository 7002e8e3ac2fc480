"""What every form of Recoding shares: errors that a model finds in its own output, and how far to step down their gradients.

Source: Ulmer, "Recoding latent sentence representations" (arXiv:2101.00674); the errors and their gradients are in `ops/recoding.py`.

A step is built for `n` things that move and looks at a vector of `size` numbers; `step(i, h)` is alpha of thing i, a number or one a row.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.layers.recurrent import widen

__all__ = [
    "AdaptiveStep",
    "Decoders",
    "FixedStep",
    "LearnedStep",
    "Masks",
    "Signal",
    "Step",
    "Surprisal",
    "anchor_loss",
    "draw_masks",
    "with_decoders",
]


# --------------------------------------------------------------------------------------------------------------- signals


@dataclass(frozen=True, kw_only=True)
class Surprisal:
    """-log p of the token that came; `power` is the source's program."""

    form: Literal["log", "power"] = "log"

    def __post_init__(self) -> None:
        if self.form not in ("log", "power"):
            raise ConfigError(f"form must be 'log' or 'power', got {self.form!r}")


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The entropy of one decoder over K masks of what it reads."""

    n: int = 10
    rate: float = 0.2  # of what a mask leaves out

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.rate < 1:
            raise ConfigError(f"n={self.n} masks that leave out {self.rate} make no sense; use n >= 1 and a rate in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """The entropy of K decoders, each held to where it began."""

    n: int = 10
    prior_scale: float = 0.01  # variance of what they start at, and are held to
    noise: float = 0.1  # of the data: how strongly they are held

    def __post_init__(self) -> None:
        if self.n < 1 or self.prior_scale <= 0 or self.noise < 0:
            raise ConfigError(f"{self} makes no sense; use n >= 1, prior_scale > 0 and noise >= 0")


Signal = Surprisal | Masks | Decoders


def draw_masks(signal: Masks, d_model: int) -> Float[Tensor, "K D"]:
    """K masks of dropout, drawn once, so that reading is a function of the stream."""
    return (torch.rand(signal.n, d_model) >= signal.rate) / (1 - signal.rate)


def with_decoders(signal: Signal) -> Decoders:
    """`signal`, which has to be `Decoders`."""
    if not isinstance(signal, Decoders):
        raise ConfigError(f"{type(signal).__name__} has no decoders of its own; use signal=Decoders(...)")
    return signal


def anchor_loss(signal: Decoders, decoders: Float[Tensor, "K V D"], anchors: Float[Tensor, "K V D"], n_tokens: int) -> Float[Tensor, ""]:
    """How far decoders are from where they began, a token of a data set of `n_tokens`: what the trainer adds to the mean loss."""
    return signal.noise / signal.prior_scale / n_tokens * (decoders - anchors).flatten(1).norm(dim=1).mean()


# ----------------------------------------------------------------------------------------------------------------- steps


@dataclass(frozen=True, kw_only=True)
class FixedStep:
    alpha: float

    def build(self, n: int, size: int) -> "Fixed":
        return Fixed(self.alpha)


@dataclass(frozen=True, kw_only=True)
class LearnedStep:
    """A number for each thing that moves, above zero by softplus."""

    def build(self, n: int, size: int) -> "Learned":
        return Learned(n)


@dataclass(frozen=True, kw_only=True)
class AdaptiveStep:
    """A small network each, that looks at what the model holds."""

    hidden: tuple[int, ...] = (300, 100)

    def build(self, n: int, size: int) -> "Adaptive":
        return Adaptive(n, size, self.hidden)


Step = FixedStep | LearnedStep | AdaptiveStep


class Fixed(nn.Module):
    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, i: int, h: Float[Tensor, "B D"]) -> float | Tensor:
        return self.alpha


class Learned(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.rand(n))

    def forward(self, i: int, h: Float[Tensor, "B D"]) -> float | Tensor:
        return F.softplus(widen(self.s)[i])


class Adaptive(nn.Module):
    def __init__(self, n: int, size: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(_network(size, hidden) for _ in range(n))

    def forward(self, i: int, h: Float[Tensor, "B D"]) -> float | Tensor:
        network = self.networks[i]
        return F.softplus(network(h.detach().to(next(network.parameters()).dtype))).to(h.dtype)


def _network(size: int, hidden: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in zip((size, *hidden), hidden, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else size, 1))

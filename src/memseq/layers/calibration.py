"""Which factors a Hadamard memory multiplies by: C_t = 1 + tanh(c_t theta_t^T), and the five ways to come by theta_t.

Source: Stable Hadamard Memory (Le et al., arXiv:2410.10132), and the ablations of its section on calibration.

    RandomRows        theta_t is a row of a learned table, drawn for every token and stream
    CyclingRows       row t modulo the number of rows
    FixedRow          one learned row
    NoRow             theta = 1: the token alone decides
    NoCalibration     C = 1: nothing is forgotten

c_t = W_c x_t without a bias: an argument that is symmetric about zero has factors of mean 1.

A random row is a hash of the stream's seed and of the token's position, never a draw from a generator: where a stream is cut, how it
is batched and whether it is replayed change nothing.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.linear import Linear

__all__ = ["CyclingRows", "FixedRow", "NoCalibration", "NoRow", "RandomRows", "drawn_rows"]

BITS = 31  # every product of two such words fits a signed 64-bit integer
MASK = 2**BITS - 1


def drawn_rows(seed: Int[Tensor, "B"], positions: Int[Tensor, "B T"], n_rows: int) -> Int[Tensor, "B T"]:
    """A row of 0 to n_rows - 1 for each token, uniform and independent for all purposes; it repeats after 2^31 tokens."""
    word = _mixed(_mixed(seed & MASK)[:, None] ^ (positions & MASK))
    return (word * n_rows) >> BITS


def _mixed(word: Tensor) -> Tensor:
    """A bijection of 31-bit words in which every bit of the input flips half of the output's: shifts and odd multipliers."""
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & MASK
    word = word ^ (word >> 15)
    word = (word * 0x2C1B3C6D) & MASK
    return word ^ (word >> 16)


def check_rows(n_rows: int) -> None:
    """Raise `ConfigError` unless a table has rows, and no more than a 31-bit word can choose among."""
    if not 1 <= n_rows <= 2**16:
        raise ConfigError(f"n_rows must lie in 1 to {2**16}, got {n_rows}")


@dataclass(frozen=True, kw_only=True)
class RandomRows:
    """The paper's: a new row for every token."""

    n_rows: int = 128

    def __post_init__(self) -> None:
        check_rows(self.n_rows)

    def build(self, d_model: int, size: int) -> "Calibration":
        return RandomCalibration(d_model, size, self.n_rows)


@dataclass(frozen=True, kw_only=True)
class CyclingRows:
    """The same table read in turn."""

    n_rows: int = 128

    def __post_init__(self) -> None:
        check_rows(self.n_rows)

    def build(self, d_model: int, size: int) -> "Calibration":
        return CyclingCalibration(d_model, size, self.n_rows)


@dataclass(frozen=True, kw_only=True)
class FixedRow:
    """One row for all tokens: what the published root module computes."""

    def build(self, d_model: int, size: int) -> "Calibration":
        return CyclingCalibration(d_model, size, 1)


@dataclass(frozen=True, kw_only=True)
class NoRow:
    """theta = 1."""

    def build(self, d_model: int, size: int) -> "Calibration":
        return PlainCalibration(d_model, size)


@dataclass(frozen=True, kw_only=True)
class NoCalibration:
    """C = 1: sums of outer products, which is linear attention."""

    def build(self, d_model: int, size: int) -> "Calibration":
        return NullCalibration(size)


Factors = tuple[Float[Tensor, "B T K"], Float[Tensor, "B T V"]]  # c and theta


class Calibration(nn.Module):
    """x, the seeds and the positions of its tokens, to c and theta."""

    def forward(self, x: Float[Tensor, "B T D"], seed: Int[Tensor, "B"], positions: Int[Tensor, "B T"]) -> Factors:
        raise TypeError(f"{type(self).__name__} must define forward(x, seed, positions)")


class PlainCalibration(Calibration):
    def __init__(self, d_model: int, size: int) -> None:
        super().__init__()
        self.key = Linear(d_model, size, bias=False)
        nn.init.normal_(self.key.weight, std=d_model**-0.5)

    def forward(self, x: Float[Tensor, "B T D"], seed: Int[Tensor, "B"], positions: Int[Tensor, "B T"]) -> Factors:
        c = self.key(x)
        return c, torch.ones_like(c)


class CyclingCalibration(PlainCalibration):
    def __init__(self, d_model: int, size: int, n_rows: int) -> None:
        super().__init__(d_model, size)
        self.rows = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_rows, size)))

    def chosen(self, seed: Tensor, positions: Tensor) -> Tensor:
        return positions % len(self.rows)

    def forward(self, x: Float[Tensor, "B T D"], seed: Int[Tensor, "B"], positions: Int[Tensor, "B T"]) -> Factors:
        return self.key(x), nn.functional.embedding(self.chosen(seed, positions).to(x.device), self.rows)


class RandomCalibration(CyclingCalibration):
    def chosen(self, seed: Tensor, positions: Tensor) -> Tensor:
        return drawn_rows(seed, positions, len(self.rows))


class NullCalibration(Calibration):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Float[Tensor, "B T D"], seed: Int[Tensor, "B"], positions: Int[Tensor, "B T"]) -> Factors:
        nothing = x.new_zeros(()).expand(*x.shape[:2], self.size)
        return nothing, nothing

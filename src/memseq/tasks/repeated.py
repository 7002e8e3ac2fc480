"""Rows of text of which a few come again and again: what repetition costs.

Source: Hernandez et al., "Scaling Laws and Interpretability of Learning from Repeated Data" (arXiv:2205.10487).

    of R rows that a training reads, a share f comes from a pool of P = f R / E rows, each read E times; the others are read once
    row r:    u(r) < f      the pool's next row, in a permutation of the whole pool, then in another ...
              else          the next row that was never read

u(r) is a hash of the seed and r, so that runs of another E read the same unique rows at the same steps: changing E changes the size of
the pool alone. At any time every row of the pool has been read k or k + 1 times. E = 1 repeats nothing.

Where a run stands is two numbers (`Place`): a run that was cut goes on as if it had not been.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memseq.errors import ConfigError, DataError

__all__ = ["Mixture", "Place", "Rows"]


class Place(NamedTuple):
    """How far a run has come."""

    row: int = 0  # rows read
    repeated: int = 0  # of them from the pool


class Rows(NamedTuple):
    repeated: NDArray[np.bool_]  # whether a row is of the pool
    index: NDArray[np.int64]  # its number in the pool, or among the rows that are read once


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """`n_rows` in all, `share` of them repeated, `epochs` times each."""

    n_rows: int
    share: float = 0.1
    epochs: float = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise ConfigError(f"n_rows={self.n_rows} reads nothing; use at least 1")
        if not 0 <= self.share <= 1:
            raise ConfigError(f"share={self.share} must lie in 0 to 1")
        if self.epochs < 1:
            raise ConfigError(f"epochs={self.epochs} reads less than the pool; use 1 or more")

    @property
    def pool_size(self) -> int:
        """P, one row at least where anything is repeated."""
        return max(1, round(self.share * self.n_rows / self.epochs)) if self.share else 0

    def take(self, n: int, place: Place = Place()) -> tuple[Rows, Place]:  # noqa: B008 (a NamedTuple does not change)
        """The next `n` rows, and the place after them."""
        repeated = _uniform(self.seed, np.arange(place.row, place.row + n, dtype=np.uint64)) < self.share
        drawn = place.repeated + np.cumsum(repeated) - repeated  # rows of the pool read before each
        index = np.arange(place.row, place.row + n) - drawn
        for epoch in np.unique(drawn[repeated] // max(1, self.pool_size)):
            own = repeated & (drawn // self.pool_size == epoch)
            index[own] = _permutation(self.seed, int(epoch), self.pool_size)[drawn[own] % self.pool_size]
        return Rows(repeated, index.astype(np.int64)), Place(place.row + n, place.repeated + int(repeated.sum()))

    def read(self, rows: Rows, pool: NDArray[Any], once: NDArray[Any]) -> NDArray[Any]:
        """The rows themselves, of [P, L] and [U, L]. Raises `DataError` where a row that is read once would be read twice."""
        if len(pool) != self.pool_size:
            raise DataError(f"the pool has {len(pool)} rows and the mixture repeats {self.pool_size}; cut it with `split`")
        if (needed := int(rows.index[~rows.repeated].max(initial=-1)) + 1) > len(once):
            raise DataError(f"there are {len(once)} rows to be read once and {needed} are asked for; use more text, or fewer rows")
        found = np.empty((len(rows.index), once.shape[1]), dtype=once.dtype)
        found[rows.repeated], found[~rows.repeated] = pool[rows.index[rows.repeated]], once[rows.index[~rows.repeated]]
        return found

    def split(self, documents: Sequence[NDArray[Any]], length: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(pool, rows to be read once): text cut into rows of `length` tokens, rows that are equal kept once, mixed."""
        cut = [ids[: len(ids) // length * length].reshape(-1, length) for ids in documents if len(ids) >= length]
        rows = np.unique(np.concatenate(cut), axis=0) if cut else np.empty((0, length), dtype=np.int64)
        if len(rows) <= self.pool_size:
            raise DataError(
                f"the text has {len(rows)} different rows of {length} tokens and the pool takes {self.pool_size}; use more text"
            )
        rows = rows[np.random.default_rng(self.seed).permutation(len(rows))]
        return rows[len(rows) - self.pool_size :], rows[: len(rows) - self.pool_size]


def _uniform(seed: int, counter: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) by a hash of a counter: splitmix64."""
    with np.errstate(over="ignore"):
        z = (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(size)

"""Rows of calibration: uniform, independent from token to token and stream to stream, and the same wherever a stream is cut."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.layers.calibration import CyclingRows, FixedRow, NoCalibration, NoRow, RandomRows, drawn_rows

N = 128


def rows(seeds, positions, n_rows=N):
    return drawn_rows(torch.as_tensor(seeds), torch.as_tensor(positions), n_rows)


def chi_square(counts):
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_a_stream_draws_every_row_alike(seed):
    counts = rows([seed], torch.arange(128_000)[None]).flatten().bincount(minlength=N).double()
    assert chi_square(counts) < 190  # 127 degrees of freedom, 0.03 %


@pytest.mark.parametrize("first", [0, 2**20])
def test_seeds_side_by_side_draw_every_row_alike(first):
    counts = rows(torch.arange(first, first + 128_000), torch.zeros(128_000, 1, dtype=torch.int64)).flatten().bincount(minlength=N).double()
    assert chi_square(counts) < 190


@pytest.mark.parametrize("lag", [1, 2, 64, 128])
def test_a_row_tells_nothing_of_later_ones(lag):
    drawn = rows([7], torch.arange(160_000)[None], 16)[0]
    pairs = (drawn[:-lag] * 16 + drawn[lag:]).bincount(minlength=256).double()
    assert chi_square(pairs) < 340  # 255 degrees of freedom, 0.03 %


def test_two_streams_are_independent():
    a, b = (rows([seed], torch.arange(160_000)[None], 16)[0] for seed in (0, 1))
    assert chi_square((16 * a + b).bincount(minlength=256).double()) < 340


def test_rows_are_a_function_of_seed_and_position_alone():
    positions = torch.tensor([[0, 1, 2, 10**9], [5, 6, 7, 8]])
    together = rows([3, 4], positions)
    for b, seed in enumerate((3, 4)):
        for t in range(4):
            assert int(rows([seed], positions[b : b + 1, t : t + 1])) == int(together[b, t])


def test_each_kind_chooses_as_it_says():
    x, seed, positions = torch.randn(2, 5, 6), torch.tensor([0, 9]), torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    cycling = CyclingRows(n_rows=3).build(6, 4)
    assert torch.equal(cycling(x, seed, positions)[1], cycling.rows[positions % 3])
    random = RandomRows(n_rows=3).build(6, 4)
    assert torch.equal(random(x, seed, positions)[1], random.rows[drawn_rows(seed, positions, 3)])
    fixed = FixedRow().build(6, 4)
    assert torch.equal(fixed(x, seed, positions)[1], fixed.rows[0].expand(2, 5, 4))
    c, theta = NoRow().build(6, 4)(x, seed, positions)
    assert bool((theta == 1).all())
    assert c.shape == theta.shape
    assert all(bool((t == 0).all()) for t in NoCalibration().build(6, 4)(x, seed, positions))


@pytest.mark.parametrize("part", [RandomRows, CyclingRows])
def test_a_table_without_rows_is_refused(part):
    with pytest.raises(ConfigError, match="n_rows must lie in 1 to 65536, got 0"):
        part(n_rows=0)

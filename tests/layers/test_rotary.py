"""Rotary positions: products depend on distances alone, as well at position 1,000,000 as at 0."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.layers.rotary import Rotary, places, rotate


@pytest.mark.parametrize("far", [0, 1_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("distance", [0, 1, 127])
def test_products_at_far_positions_are_as_good_as_at_the_start(far, distance):
    q, k = torch.nn.functional.normalize(torch.randn(2, 100, 64), dim=-1)
    rotary = Rotary(64, 10000.0)

    def product(start):
        turned = [rotate(x, rotary(torch.tensor([p]), x.dtype)) for x, p in ((q, start + distance), (k, start))]
        return (turned[0] * turned[1]).sum(-1)

    assert_close(product(far), product(0), rtol=0, atol=1e-6)


def test_each_pair_of_features_is_turned_by_its_own_angle():
    x = torch.randn(4, 6, dtype=torch.float64)
    turned = rotate(x, Rotary(6, 100.0)(torch.tensor([7]), x.dtype))
    for j in range(3):
        angle = torch.tensor(7 * 100.0 ** (-2 * j / 6), dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        expected = x[:, 2 * j : 2 * j + 2] @ torch.stack([torch.stack([c, s]), torch.stack([-s, c])])
        assert_close(turned[:, 2 * j : 2 * j + 2], expected, rtol=1e-12, atol=1e-14)


def test_a_model_in_bfloat16_keeps_exact_angles():
    exact, model = Rotary(8, 10000.0), Rotary(8, 10000.0).to(torch.bfloat16)
    assert model.frequencies.dtype == torch.float64
    assert_close(model(torch.tensor([999_999]), torch.bfloat16), exact(torch.tensor([999_999]), torch.float32), rtol=0, atol=0)


def test_places_are_shared_or_a_rows_own():
    cpu = torch.device("cpu")
    assert places(torch.tensor([5, 5]), 3, cpu).tolist() == [5, 6, 7]
    assert places(torch.tensor([5, 0]), 3, cpu).tolist() == [[5, 6, 7], [0, 1, 2]]


def test_odd_heads_and_bad_bases_are_refused():
    with pytest.raises(ConfigError, match="even number of features"):
        Rotary(7, 10000.0)
    with pytest.raises(ConfigError, match="above 1"):
        Rotary(8, 1.0)

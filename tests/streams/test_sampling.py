"""The sampler draws from the distribution it says it draws from."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, StateError
from memseq.streams import Sampler, draw

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 1.0, float("-inf")], dtype=torch.float64)


def frequencies(sampler, n=20001):
    """Every draw on a fine grid in [0, 1): the share of each token, without noise."""
    u = torch.arange(n, dtype=torch.float64) / n
    return sampler.choose(LOGITS.expand(n, -1), u).bincount(minlength=len(LOGITS)).double() / n


def test_zero_temperature_is_the_first_of_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, -5.0]])
    assert Sampler(temperature=0.0).choose(logits, torch.rand(2)).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    assert_close(frequencies(Sampler(temperature=temperature)), (LOGITS / temperature).softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize("k", [1, 2, 4, 100])
def test_top_k_is_the_softmax_over_the_k_likeliest(k):
    kept = LOGITS.argsort(descending=True)[:k]
    p = torch.full_like(LOGITS, float("-inf"))
    p[kept] = LOGITS[kept]
    assert_close(frequencies(Sampler(top_k=k)), p.softmax(-1), atol=2e-4, rtol=0)


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.6, 0.9, 1.0])
def test_top_p_keeps_the_fewest_that_reach_it(top_p):
    p = LOGITS.softmax(-1)
    order = p.argsort(descending=True)
    n = next(n for n in range(1, len(p) + 1) if float(p[order[:n]].sum()) >= top_p - 1e-12)
    kept = torch.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    assert_close(frequencies(Sampler(top_p=top_p)), kept / kept.sum(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 1e300])
def test_extreme_temperatures_stay_finite(temperature):
    tokens = Sampler(temperature=temperature).choose(LOGITS.expand(50, -1), torch.linspace(0, 1 - 1e-12, 50))
    assert int(tokens.max()) < 5
    if temperature < 1:
        assert set(tokens.tolist()) == {0}


def test_a_draw_depends_on_seed_and_position_only():
    first = [draw(3, t) for t in range(100)]
    assert [draw(3, t) for t in reversed(range(100))] == first[::-1]
    assert [draw(4, t) for t in range(100)] != first
    assert all(0 <= u < 1 for u in first)
    assert draw(0, 0) == 0.011546754286331562  # the same on every machine, in every version


def test_draws_are_uniform():
    for draws in ([draw(0, t) for t in range(4000)], [draw(seed, 7) for seed in range(4000)]):
        counts = torch.tensor(draws).mul(10).long().bincount(minlength=10)
        assert float(((counts - 400) ** 2 / 400).sum()) < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(StateError, match="not finite"):
        Sampler().choose(torch.tensor([[0.0, bad]]), torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": 0}, "top_k=0"),
    ],
)
def test_errors_say_what_was_given(options, words):
    with pytest.raises(ConfigError, match=words):
        Sampler(**options)
    with pytest.raises(ConfigError, match="seed=-1"):
        draw(-1, 0)

"""Fits find the timescales that a series was made with."""

import numpy as np
import pytest

from memseq.probes.timescales import TimescalesProbe, autocorrelation, timescale

LAGS = np.arange(31)


@pytest.mark.parametrize("tau", [0.7, 3.0, 12.0, 60.0])
def test_one_exponential_is_found(tau):
    found, fit = timescale(0.9 * np.exp(-LAGS / tau) + 0.1 * (LAGS == 0))
    assert fit in ("one", "two")
    found, fit = timescale(np.exp(-LAGS / tau))
    assert fit == "one"
    assert found == pytest.approx(tau, rel=0.01)


def test_of_two_exponentials_the_slower_is_told():
    found, fit = timescale(0.6 * np.exp(-LAGS / 1.5) + 0.4 * np.exp(-LAGS / 20))
    assert fit == "two"
    assert found == pytest.approx(20, rel=0.03)


def test_noise_has_no_long_timescale():
    noise = np.random.default_rng(0).normal(size=(4, 4000, 1))
    found, _ = timescale(autocorrelation(noise)[:, 0])
    assert not found > 1.0  # short, or none
    assert np.isnan(timescale(np.full(31, np.nan))[0])


def test_autocorrelation_equals_its_definition():
    x = np.random.default_rng(1).normal(size=(2, 50, 3)).cumsum(1)
    centred = x - x.mean(1, keepdims=True)
    expected = np.stack([(centred[:, : 50 - lag] * centred[:, lag:]).sum(1).mean(0) / (50 - lag) for lag in range(31)])
    np.testing.assert_allclose(autocorrelation(x), expected / expected[0], rtol=1e-9)


def test_the_timescale_of_a_decay_is_found(subject, leaky):
    """A sum that keeps 0.9 a token, of tokens drawn at random: tau = -1 / ln 0.9."""
    found = TimescalesProbe(length=1024, samples=4, units=24).run(subject(leaky(0.9)))
    assert found["kinds"]["h"]["median"] == pytest.approx(-1 / np.log(0.9), rel=0.2)
    assert found["kinds"]["logits"] == {}  # they never move
    assert "the median of h" in found["says"][0]["answer"]

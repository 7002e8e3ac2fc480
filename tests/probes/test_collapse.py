"""A sum that forgets stays in range; one that does not grows with the length, and is found out."""

import numpy as np
import pytest
import torch

from memseq.errors import ConfigError
from memseq.models.presets import preset
from memseq.probes import Subject
from memseq.probes.collapse import CollapseProbe
from memseq.training.live_bytes import LiveBytes


def test_a_memory_that_forgets_does_not_collapse(subject, leaky):
    found = CollapseProbe(length=1024).run(subject(leaky(0.9), trained_length=128))
    assert found["collapsed"] == []
    assert found["read"] == 2047
    leaf = found["streams"]["one token"]["leaves"][0]
    assert leaf["growth"] == pytest.approx(1.0, abs=1e-3)  # it is at its fixed point
    assert leaf["exponent"] == pytest.approx(0.0, abs=1e-3)
    assert found["says"][0]["answer"].startswith("yes")


def test_a_memory_that_adds_for_ever_collapses(subject, leaky):
    found = CollapseProbe(length=1024).run(subject(leaky(1.0), trained_length=127))
    assert found["collapsed"] == ["h"]
    leaf = found["streams"]["one token"]["leaves"][0]
    assert leaf["growth"] == pytest.approx(2047 / 127, rel=1e-4)  # a sum of equal vectors
    assert leaf["exponent"] == pytest.approx(1.0, abs=1e-4)
    assert found["says"][0]["answer"].startswith("no: 1 of 1")


def test_numbers_that_are_no_numbers_are_found(subject, leaky):
    class Broken(leaky):
        def step(self, tokens, state):
            logits, state = super().step(tokens, state)
            h = state.h.clone()
            h[:, 3] = torch.where(h[:, 0].abs() > 0, torch.inf, 0.0)
            return logits, state._replace(h=h)

    found = CollapseProbe(length=64).run(subject(Broken(0.5), trained_length=16))
    assert found["collapsed"] == ["h"]
    assert found["streams"]["text"]["leaves"][0]["not_finite"] >= 1


def test_within_its_training_nothing_is_said(subject, leaky):
    found = CollapseProbe(length=64).run(subject(leaky(1.0), trained_length=4096))
    assert found["says"][0]["answer"].startswith("not known")


@pytest.mark.parametrize("length", [1 << 13, pytest.param(1 << 16, marks=pytest.mark.slow)])
def test_a_long_stream_is_read_in_constant_memory(length):
    """Of a bounded model: what is alive at once does not depend on how long the stream is, up to 131,071 tokens."""

    def peak(length):
        torch.manual_seed(0)
        model = preset("sliding_window", "tiny", d_model=8, n_heads=1, n_layers=1, window=8, vocab_size=16).build()
        made = Subject(name="bounded", model=model, documents=(np.arange(512) % 16,))
        with torch.no_grad(), LiveBytes() as alive:
            found = CollapseProbe(length=length).measure(made, "one token")
        assert len({row["state_bytes"] for row in found["rows"]}) == 1
        assert found["rows"][-1]["place"] == 2 * length - 1
        return alive.peak

    assert peak(length) <= 1.1 * peak(1 << 11)  # pieces of 1,025 tokens at most


def test_a_length_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="length=0 measures nothing"):
        CollapseProbe(length=0)

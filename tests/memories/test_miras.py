"""Four choices make a memory: presets are what they say, choices are written and read, and Titans is one of them."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from memseq.configs import from_dict, to_dict
from memseq.errors import ConfigError
from memseq.memories.miras import Descent, Matrix, MemoraConfig, MirasConfig, MonetaConfig, Perceptron, YaadConfig
from memseq.memories.titans import TitansConfig
from memseq.ops.miras import Huber, Keep, NormQ, Power, Simplex, Squared
from memseq.state import tensors


def test_the_three_models_are_their_choices():
    assert (MonetaConfig(d_model=8).bias, MonetaConfig(d_model=8).retention) == (Power(p=3.0), NormQ(q=4.0))
    assert (YaadConfig(d_model=8).bias, YaadConfig(d_model=8).retention) == (Huber(), Keep())
    assert (MemoraConfig(d_model=8).bias, MemoraConfig(d_model=8).retention) == (Squared(), Simplex())
    for config in (MonetaConfig(d_model=8), YaadConfig(d_model=8), MemoraConfig(d_model=8)):
        assert config.architecture == Perceptron()
        assert from_dict(to_dict(config)) == config


def test_a_choice_of_ones_own_is_written_and_read():
    config = MirasConfig(d_model=8, architecture=Matrix(), bias=Power(p=1.0), retention=Simplex(scale=3.0), algorithm=Descent(keep=None))
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("momentum", [None, 0.7])
def test_titans_is_one_of_the_choices(momentum):
    shared = {"d_model": 16, "n_heads": 2}
    algorithm = Descent(segment_length=4, keep=0.9, momentum=momentum)
    miras = MirasConfig(**shared, algorithm=algorithm, architecture=Perceptron(expansion=2)).build().double()
    titans = TitansConfig(**shared, segment_length=4, forget=0.1, momentum=momentum, expansion=2, form="normed").build().double()
    weights = miras.state_dict()
    keep = weights["rates.weight"].clone()
    keep[0] *= -1  # what is kept is one less what is forgotten
    bias = weights["rates.bias"].clone()
    bias[0] *= -1
    titans.load_state_dict({**weights, "rates.weight": keep, "rates.bias": bias})
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    (y, end), (expected, wanted) = (m(x, m.init_state(2)) for m in (miras, titans))
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert_close(end.fast, wanted.fast, rtol=1e-10, atol=1e-12)


def test_memoras_weights_never_grow():
    torch.manual_seed(0)
    memory = MemoraConfig(d_model=8, n_heads=1, architecture=Matrix(), algorithm=Descent(keep=None, step=0.9)).build()
    state = memory.init_state(1)
    with torch.no_grad():
        for _ in range(40):
            state = memory.advance(3 * torch.randn(1, 256, 8), state)
    W = memory.config.retention.primal(state.fast.weights[0])
    assert float(W.sum(-2).sub(1).abs().max()) < 1e-5
    assert float(W.min()) >= 0


def test_without_momentum_none_is_kept():
    kept = YaadConfig(d_model=8, n_heads=2).build().init_state(1)
    assert kept.fast.momentum == ()
    more = YaadConfig(d_model=8, n_heads=2, algorithm=Descent(momentum=0.5)).build().init_state(1)
    assert len(tensors(more)) > len(tensors(kept))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Perceptron(depth=1), "or use Matrix"),
        (lambda: Descent(keep=1.0), "or None to do without"),
        (lambda: Descent(step=2.0), "between 0 and step_limit"),
        (lambda: Descent(segment_length=0), "segment_length must be at least 1"),
        (lambda: Descent(gradient_limit=0.0), "or None for no limit"),
        (lambda: MirasConfig(d_model=10, n_heads=4), "cannot be split"),
        (lambda: replace(YaadConfig(d_model=8), delta=0.0), "delta must be above 0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()

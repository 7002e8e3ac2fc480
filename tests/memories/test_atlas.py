"""ATLAS and its family: what each name is, and what its parts reduce to."""

from dataclasses import replace

import pytest
import torch
from reading import read
from torch.testing import assert_close

from memseq.configs import from_dict, to_dict
from memseq.errors import ConfigError
from memseq.layers.fast_weights import Matrix, Perceptron
from memseq.memories.atlas import AtlasConfig, DeepTransformersConfig, DotConfig, OmegaNetConfig
from memseq.memories.titans import TitansConfig

F64 = torch.float64
FAMILY = [AtlasConfig(d_model=16, n_heads=2), OmegaNetConfig(d_model=16), DotConfig(d_model=8), DeepTransformersConfig(d_model=8)]


def test_each_name_is_its_choices():
    assert [(c.bias, c.muon, c.momentum, c.degree) for c in FAMILY] == [
        ("squared", 5, 0.9, 2),
        ("squared", None, None, 2),
        ("squared", None, None, 3),
        ("product", None, None, 3),
    ]
    assert FAMILY[3].window == 1
    for config in FAMILY:
        assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("momentum", [None, 0.7])
def test_a_window_of_one_is_titans(momentum):
    """Without features, and with tokens that all count: gamma is one."""
    shared = {"d_model": 16, "n_heads": 2, "segment_length": 4}
    atlas = (
        OmegaNetConfig(**shared, window=1, degree=None, momentum=momentum, keep=0.9, architecture=Perceptron(expansion=2)).build().double()
    )
    titans = TitansConfig(**shared, forget=0.1, momentum=momentum, expansion=2, form="normed").build().double()
    weights = atlas.state_dict()
    rates, biases = weights.pop("rates.weight").clone(), weights.pop("rates.bias").clone()
    with torch.no_grad():
        atlas.rates.weight[-1] = 0
        atlas.rates.bias[-1] = 50
    rates[0], biases[0] = -rates[0], -biases[0]  # what is kept is one less what is forgotten
    titans.load_state_dict({**weights, "rates.weight": rates[:-1], "rates.bias": biases[:-1]})
    x = torch.randn(2, 11, 16, dtype=F64)
    y, end = atlas(x, atlas.init_state(2))
    expected, wanted = titans(x, titans.init_state(2))
    assert_close(y, expected, rtol=1e-9, atol=1e-11)
    assert_close(end.fast, wanted.fast, rtol=1e-9, atol=1e-11)


def test_features_of_keys_of_length_one_have_length_one():
    memory = AtlasConfig(d_model=32, n_heads=2).build().double()
    k = torch.nn.functional.normalize(torch.randn(1, 2, 5, 16, dtype=F64), dim=-1)
    phi = memory.features(k)
    assert phi.shape[-1] == memory.config.n_features == 153
    assert_close(phi.square().sum(-1), torch.ones(1, 2, 5, dtype=F64), rtol=1e-12, atol=0)
    q = torch.nn.functional.normalize(torch.randn(1, 2, 5, 16, dtype=F64), dim=-1)
    z = (q * k).sum(-1)
    assert_close((memory.features(q) * phi).sum(-1), (1 + z + z**2 / 2) / 2.5, rtol=1e-6, atol=0)  # the terms of an exponential


def test_a_window_is_carried_over_cuts_and_segments():
    memory = AtlasConfig(d_model=16, n_heads=2, window=7, segment_length=5, muon=1).build().double()
    x = torch.randn(2, 23, 16, dtype=F64)
    y, end = read(memory, x, [23])
    found, after = read(memory, x, [1, 9, 2, 11])
    assert_close(found, y, rtol=1e-9, atol=1e-11)
    assert_close(after.window, end.window, rtol=1e-9, atol=1e-11)


def test_capacity_of_a_window_and_of_features():
    """Untrained, 32 unit keys of 32 numbers in one pass, as the relative squared error of recall: a window beats one token below
    capacity; twenty seeds, step one over the largest curvature of the window."""
    from memseq.ops.fast_network import mlp
    from memseq.ops.omega import Window, omega_chunkwise
    from memseq.ops.titans import FastState, Gates, squared_error

    d, n, errors = 32, 16, {1: 0.0, 4: 0.0, 16: 0.0}
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        k = torch.nn.functional.normalize(torch.randn(1, 1, n, d, generator=g, dtype=F64), dim=-1)
        v = torch.randn(1, 1, n, d, generator=g, dtype=F64)
        for window in errors:
            zeros, ones = torch.zeros(1, 1, d, d, dtype=F64), torch.ones(1, 1, n, dtype=F64)
            grams = [k[0, 0, max(0, t - window + 1) : t + 1] for t in range(n)]
            step = torch.tensor([1 / float(torch.linalg.eigvalsh(K @ K.T)[-1]) for K in grams], dtype=F64)[None, None]
            held = Window(*(torch.zeros(1, 1, window - 1, d, dtype=F64) for _ in range(2)), torch.zeros(1, 1, window - 1, dtype=F64))
            state = FastState((zeros,), (), (zeros,), torch.zeros(1, dtype=torch.int64))
            options = {"slope": squared_error, "features": lambda z: z, "segment_length": 1}
            _, end, _ = omega_chunkwise(mlp((d, d)), None, k, v, ones, Gates(0 * ones, None, step), state, held, **options)
            errors[window] += float((k @ end.weights[0] - v).square().sum() / v.square().sum()) / 20
    assert errors[16] < errors[4] < errors[1]
    assert_close(torch.tensor(list(errors.values())), torch.tensor([0.293, 0.242, 0.123]), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"degree": 5}, "degree must lie in 1 to 4"),
        ({"window": 0}, "window must be at least 1"),
        ({"architecture": Perceptron()}, "Muon is for matrices"),
        ({"architecture": Perceptron(form="residual")}, "use form='plain', or degree=None"),
        ({"muon": -1}, "or None for plain descent"),
        ({"keep": 1.5}, "or None to do without"),
        ({"step": 3.0}, "between 0 and step_limit"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        replace(AtlasConfig(d_model=16, n_heads=2, architecture=Matrix()), **change)

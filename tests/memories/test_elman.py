"""Elman's network: torch's own numbers, the contract in every form, the count of its weights."""

import jaxtyping
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError
from memseq.memories.elman import Elman, ElmanConfig
from memseq.state import detach, state_bytes

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form

FORMS = [
    ElmanConfig(d_model=4, activation="sigmoid"),
    ElmanConfig(d_model=4, activation="relu", radius=0.5),
]


@pytest.fixture
def as_users_run_it():
    """Without the checks of types that tests add: a wrong name reaches the config's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("config", FORMS, ids=lambda c: c.activation)
def test_it_is_a_memory(config):
    check_memory(config, effort=SHORT).raise_if_broken()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_a_torch_module_gives_its_numbers(nonlinearity, bias):
    module = nn.RNN(5, 5, num_layers=2, nonlinearity=nonlinearity, bias=bias, batch_first=True).double()
    first, second = (Elman.from_torch(module, layer) for layer in ("l0", "l1"))
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    y, bottom = first(x, first.init_state(2))
    y, top = second(y, second.init_state(2))
    wanted, h = module(x)
    assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert_close(torch.stack([bottom.h, top.h]), h, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("as_users_run_it")
def test_modules_that_are_not_ours_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"expected a torch.nn.RNN, got LSTM"):
        Elman.from_torch(nn.LSTM(3, 3))
    with pytest.raises(ConfigError, match="no layer 'l1'; it has l0, l0_reverse"):
        Elman.from_torch(nn.RNN(3, 3, bidirectional=True), "l1")


@pytest.mark.parametrize(("I", "D"), [(7, 5), (4, 4)])
def test_its_weights_are_counted_as_in_the_review(I, D):
    memory = ElmanConfig(d_model=I, hidden_size=D).build()
    assert sum(p.numel() for p in memory.cell.parameters()) == D * (I + D + 1)


def test_its_start_is_a_rotation_or_the_identity_scaled():
    rotation = ElmanConfig(d_model=6, radius=0.5).build().cell.gates.w_h
    assert_close(rotation @ rotation.mT, 0.25 * torch.eye(6))
    assert_close(ElmanConfig(d_model=6, start="identity", radius=2.0).build().cell.gates.w_h.data, 2 * torch.eye(6))


@pytest.mark.parametrize("steps", [3, 20])
def test_truncated_backpropagation_over_the_whole_stream_is_the_whole_gradient(steps):
    """Cut every `steps` tokens: exact when no cut falls inside the stream, something else when one does."""
    memory = ElmanConfig(d_model=3, hidden_size=8).build().double()
    x = torch.randn(2, 12, 3, dtype=torch.float64)

    def gradient(cut):
        state, losses = memory.init_state(2), []
        for piece in x.split(cut, dim=1):
            y, state = memory(piece, detach(state))
            losses.append(y.square().sum())
        return torch.autograd.grad(sum(losses), memory.cell.gates.w_h)[0]

    difference = float((gradient(steps) - gradient(12)).abs().max())
    assert difference < 1e-12 if steps >= 12 else difference > 1e-4


def test_a_state_is_a_float_a_hidden_unit_at_any_age():
    memory = ElmanConfig(d_model=3, hidden_size=8).build()
    for T in (1, 1000):
        _, state = memory(torch.randn(2, T, 3), memory.init_state(2))
        assert state_bytes(state) == 4 * 2 * 8


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"d_model": 0}, "d_model must be at least 1, got 0"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"activation": "gelu"}, "activation must be one of tanh, relu, sigmoid, got 'gelu'"),
        ({"start": "ones"}, "start must be 'orthogonal' or 'identity', got 'ones'"),
        ({"radius": 0.0}, "radius must be above zero"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"initial": "random"}, "initial must be 'zeros' or 'learned', got 'random'"),
    ],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_config_that_makes_no_sense_says_why(fields, says):
    with pytest.raises(ConfigError, match=says):
        ElmanConfig(**{"d_model": 4} | fields)

"""The leaky network: no unit feeds itself, time constants have a floor, and those that are fixed are not trained."""

import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.elman import ElmanConfig
from memseq.memories.timescales import LeakyNetworkConfig
from memseq.ops.leaky import without_self
from memseq.ops.recurrent import scan


def gradients(memory, T=8):
    y, _ = memory(torch.randn(2, T, memory.config.d_model, dtype=torch.float64), memory.init_state(2))
    y.square().sum().backward()


@pytest.mark.parametrize("leak", ["inside", "outside"])
def test_a_unit_never_feeds_itself(leak):
    memory = LeakyNetworkConfig(d_model=3, hidden_size=5, leak=leak).build().double()
    gradients(memory)
    assert torch.count_nonzero(memory.cell.w_r.grad.diagonal()) == 0
    assert torch.count_nonzero(memory.cell.w_r.grad) == 20
    x, state = torch.randn(2, 8, 3, dtype=torch.float64), memory.init_state(2)
    before = memory(x, state)[0]
    with torch.no_grad():
        memory.cell.w_r.fill_diagonal_(7.0)
    assert_close(memory(x, state)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("leak", ["inside", "outside"])
def test_many_tokens_are_the_cell_over_time(leak):
    memory = LeakyNetworkConfig(d_model=3, hidden_size=5, leak=leak, substeps=1 if leak == "inside" else 2).build().double()
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    found, _ = memory.cell(x, memory.init_state(2))
    wanted, _ = scan(memory.cell.cell(), memory.cell.inputs(x), memory.init_state(2))
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_with_every_tau_one_it_is_elmans_network():
    memory = LeakyNetworkConfig(d_model=3, hidden_size=5, activation="relu", taus=(1.0, 1.0)).build().double()
    elman = ElmanConfig(d_model=3, hidden_size=5, activation="relu").build().double()
    with torch.no_grad():
        for name, w in (("w_x", memory.cell.w_x), ("w_h", without_self(memory.cell.w_r)), ("b", memory.cell.b)):
            getattr(elman.cell.gates, name).copy_(w)
        elman.output.load_state_dict(memory.output.state_dict())
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    assert_close(memory(x, memory.init_state(2))[0], elman(x, elman.init_state(2))[0], rtol=1e-12, atol=1e-12)


def test_time_constants_have_a_floor_and_fixed_ones_are_no_parameter():
    trained = LeakyNetworkConfig(d_model=3, hidden_size=5).build().double()
    gradients(trained)
    assert torch.count_nonzero(trained.cell.tau.grad) == 5
    with torch.no_grad():
        trained.cell.tau[:2] = -3.0
    assert trained.taus()[:2].tolist() == [1.0, 1.0]
    fixed = LeakyNetworkConfig(d_model=3, hidden_size=5, train_tau=False, taus=(4.0, 4.0)).build()
    assert fixed.taus().tolist() == 5 * [4.0]
    assert "cell.tau" not in dict(fixed.named_parameters())
    assert "cell.tau" in fixed.state_dict()  # it is kept on the disk all the same


def test_a_silent_unit_stays_at_zero_and_is_not_read():
    memory = LeakyNetworkConfig(d_model=3, hidden_size=5).build().double()
    memory.silence(torch.tensor([1, 3]))
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    y, state = memory(x, memory.init_state(2))
    assert torch.count_nonzero(state.r[:, [1, 3]]) == 0
    assert torch.count_nonzero(state.r[:, [0, 2, 4]]) == 6
    stirred = memory.init_state(2)._replace(r=torch.zeros(2, 5, dtype=torch.float64).index_fill(1, torch.tensor([1, 3]), 9.0))
    assert_close(memory(x, stirred)[0], y, rtol=0, atol=0)  # even what it held does not reach the others
    with pytest.raises(ConfigError, match="units must lie in 0 to 4"):
        memory.silence(torch.tensor([5]))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"leak": "none"}, "leak must be 'inside' or 'outside'"),
        ({"activation": "gelu"}, "activation must be one of leaky_relu, relu"),
        ({"taus": (0.5, 2.0)}, "are no range of time constants"),
        ({"substeps": 0}, "substeps must be at least 1"),
        ({"substeps": 2}, "are defined for leak='outside'"),
    ],
)
def test_a_config_that_makes_no_sense_says_why(fields, says):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ConfigError, match=says):
            LeakyNetworkConfig(**{"d_model": 4} | fields)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)

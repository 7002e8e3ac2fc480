"""The gated recurrent unit: torch's own numbers, the contract in every form, the count of its weights."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError
from memseq.memories.gru import GRU, AfterReset, BeforeReset, GRUConfig, Zoneout

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form


def test_it_is_a_memory():
    config = GRUConfig(d_model=4, hidden_size=6, cell=Zoneout(cell=BeforeReset(), rates=(0.2,)), initial="learned")
    check_memory(config, effort=SHORT).raise_if_broken()


@pytest.mark.parametrize("bias", [True, False])
def test_a_torch_module_gives_its_numbers(bias):
    module = nn.GRU(5, 5, bias=bias, batch_first=True).double()
    memory = GRU.from_torch(module)
    x, h = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    y, state = memory(x, type(memory.init_state(2))(h))
    wanted, last = module(x, h[None])
    assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert_close(state.h, last[0], rtol=1e-12, atol=1e-12)


def test_the_two_resets_are_two_functions():
    after, before = (GRUConfig(d_model=5, cell=cell).build() for cell in (AfterReset(), BeforeReset()))
    before.load_state_dict(after.state_dict(), strict=False)  # all but c_n, which is zero
    x = torch.randn(2, 9, 5)
    apart = (after(x, after.init_state(2))[0] - before(x, before.init_state(2))[0]).abs()
    first, later = apart.tensor_split([1], dim=1)
    assert first.max() < 1e-6  # with nothing to reset they agree
    assert later.max() > 1e-2


def test_its_weights_are_counted_as_in_the_review():
    I, D = 4, 7
    for cell, more in ((BeforeReset(), 0), (AfterReset(), D)):
        memory = GRUConfig(d_model=I, hidden_size=D, cell=cell).build()
        assert sum(p.numel() for p in memory.cell.parameters()) == 3 * D * (I + D + 1) + more


def test_zoneout_wants_a_rate_for_each_carried_tensor():
    with pytest.raises(ConfigError, match="zoneout has 2 rates and AfterReset carries 1 tensors; give one each"):
        GRUConfig(d_model=4, cell=Zoneout(cell=AfterReset(), rates=(0.1, 0.1))).build()
    with pytest.raises(ConfigError, match=r"rates of zoneout must lie in \[0, 1\), got \(1.0,\)"):
        Zoneout(cell=AfterReset(), rates=(1.0,))

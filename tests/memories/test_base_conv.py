"""BaseConv against its equations, token by token."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.base_conv import BaseConvConfig
from memseq.state import state_bytes


@pytest.mark.parametrize("width", [2, 3, 4])
def test_outputs_are_those_of_the_equations(width):
    memory = BaseConvConfig(d_model=5, width=width).build().double()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    u, gate = memory.up(x).chunk(2, dim=-1)
    y = []
    for t in range(9):
        seen = sum(memory.conv.weight[:, width - 1 - back] * u[:, t - back] for back in range(width) if t >= back)
        y.append(memory.down(F.silu(seen) * gate[:, t]))
    assert_close(memory(x, memory.init_state(2))[0], torch.stack(y, dim=1), rtol=1e-10, atol=1e-12)


def test_the_state_is_the_last_inputs_of_the_convolution():
    memory = BaseConvConfig(d_model=8).build()
    state = memory.advance(torch.randn(2, 20, 8), memory.init_state(2))
    assert state_bytes(state) == 4 * 2 * 2 * 16


def test_bad_configs_are_refused_in_words():
    with pytest.raises(ConfigError, match="mixes no tokens"):
        BaseConvConfig(d_model=8, width=1)
    with pytest.raises(ConfigError, match="d_model"):
        BaseConvConfig(d_model=0)

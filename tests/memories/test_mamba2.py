"""Mamba-2 beside its own step, written out; its special cases; its start."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.mamba2 import Mamba2Config


def steps(memory, x, state):
    """The recurrence of the paper, token by token, in a state of the official layout: h [B, H, P, N]."""
    c, outs = memory.config, []
    (h, tail, *_), W = state, memory.conv.weight
    h = h.mT
    for t in range(x.shape[1]):
        z, mixed, d = memory.inputs(x[:, t]).split([c.inner, c.conv_channels, c.n_heads], dim=-1)
        window = torch.cat([tail, mixed[:, None]], dim=1)
        tail = window[:, 1:]
        mixed = torch.einsum("bwc,cw->bc", window, W)
        mixed = F.silu(mixed if memory.conv.bias is None else mixed + memory.conv.bias)
        u, key, query = mixed.split([c.inner, c.n_groups * c.state_size, c.n_groups * c.state_size], dim=-1)
        u = u.unflatten(-1, (c.n_heads, -1))
        key, query = (s.unflatten(-1, (c.n_groups, -1)).repeat_interleave(c.n_heads // c.n_groups, 1) for s in (key, query))
        d = F.softplus(d + memory.gate.dt_bias).clamp(c.min_step, c.max_step)
        a = (-d * memory.gate.A_log.exp()).exp()
        h = a[..., None, None] * h + torch.einsum("bh,bhp,bhn->bhpn", d, u, key)
        y = torch.einsum("bhpn,bhn->bhp", h, query) + memory.skip[:, None] * u
        y = (y.flatten(1) * F.silu(z)).unflatten(-1, (c.n_groups, -1))
        y = y / (y.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
        outs.append(memory.out(y.flatten(1) * memory.norm.weight))
    return torch.stack(outs, dim=1), h.mT, tail


@pytest.mark.parametrize(
    "config",
    [
        Mamba2Config(d_model=16, head_size=8, state_size=6),
        Mamba2Config(
            d_model=16, head_size=4, state_size=5, n_groups=4, bias=True, conv_bias=False, min_step=0.01, max_step=0.05, chunk_size=7
        ),
    ],
    ids=["one group", "four groups"],
)
def test_it_is_the_step_of_the_paper(config):
    memory = config.build().double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 40, 16, dtype=torch.float64)
    state = memory.init_state(2)
    state = state._replace(h=torch.randn_like(state.h), tail=torch.randn_like(state.tail))
    expected, h, tail = steps(memory, x, state)
    y, end = memory(x, state)
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert_close(end.h, h, rtol=1e-10, atol=1e-12)
    assert_close(end.tail, tail, rtol=1e-10, atol=1e-12)


def test_its_steps_begin_log_uniform_and_its_rates_uniform():
    torch.manual_seed(0)
    memory = Mamba2Config(d_model=4096, head_size=4).build()
    step, rate = F.softplus(memory.gate.dt_bias), memory.gate.A_log.exp()
    assert 1e-3 * 0.99 < step.min() < 1.1e-3 < 0.09 < step.max() < 0.1 * 1.01
    assert step.log().mean().item() == pytest.approx(torch.tensor([1e-3, 1e-1]).log().mean().item(), abs=0.1)
    assert 1 <= rate.min() < 1.1 < 15.9 < rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8.5, abs=0.4)
    for parameter in (memory.gate.A_log, memory.gate.dt_bias, memory.skip):
        assert parameter.no_decay


def test_a_shut_gate_forgets_and_an_open_one_keeps():
    memory = Mamba2Config(d_model=16, head_size=8, state_size=6).build().double()
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    start = memory.init_state(1)._replace(h=torch.ones_like(memory.init_state(1).h))
    with torch.no_grad():
        memory.gate.dt_bias.fill_(-50.0)
        kept = memory(x, start)[1].h
        memory.gate.dt_bias.fill_(50.0)
        forgot, fresh = memory(x, start)[1].h, memory(x, memory.init_state(1))[1].h
    assert_close(kept, start.h, rtol=1e-12, atol=1e-12)
    assert_close(forgot, fresh, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"head_size": 5}, "cannot be split into heads of head_size=5"),
        ({"head_size": 8, "n_groups": 3}, "4 heads cannot share n_groups=3"),
        ({"head_size": 8, "state_size": 0}, "state_size must be at least 1, got 0"),
        ({"head_size": 8, "min_step": 1.0, "max_step": 0.5}, "min_step < max_step, got min_step=1.0 and max_step=0.5"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Mamba2Config(d_model=16, **wrong)

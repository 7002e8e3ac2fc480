"""HGRN-2 against its equations, written out token by token; the bound of its forget gate."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.hgrn2 import HGRN2Config
from memseq.state import state_bytes

F64 = torch.float64


def by_the_equations(memory, x):
    c, (B, T, D) = memory.config, x.shape
    K = D // c.n_heads
    S, y, inputs = torch.zeros(B, c.n_heads, K, K, dtype=F64), [], []
    for t in range(T):
        mixed = x[:, t] @ memory.inputs.weight.T
        if memory.conv is not None:
            inputs.append(mixed)
            taps = memory.conv.weight
            mixed = sum(inputs[t - i] * taps[:, -1 - i] for i in range(min(t + 1, taps.shape[1])))
        q, f, v = (s.view(B, c.n_heads, K) for s in mixed.chunk(3, dim=-1))
        f = c.lower_bound + (1 - c.lower_bound) * f.sigmoid()
        S = f[..., None] * S + (1 - f)[..., None] * v[:, :, None]
        o = torch.einsum("b h k, b h k v -> b h v", q * q.sigmoid(), S).reshape(B, D) / math.sqrt(K)
        y.append((memory.norm.weight * o / (o.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()) @ memory.out.weight.T)
    return torch.stack(y, dim=1), S


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
@pytest.mark.parametrize("options", [{}, {"conv_width": 3}, {"lower_bound": 0.4}], ids=str)
def test_outputs_state_and_gradients_are_those_of_the_equations(options, chunk_size):
    memory = HGRN2Config(d_model=12, n_heads=2, chunk_size=chunk_size, **options).build().double()
    x = torch.randn(2, 19, 12, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, S = by_the_equations(memory, x)
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(state.S, S, rtol=1e-10, atol=1e-12)
    sources, seed = (x, *memory.parameters()), torch.randn_like(y)
    for f, w in zip(*(torch.autograd.grad((out * seed).sum(), sources) for out in (y, wanted)), strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-11)


def test_the_state_is_an_average_of_values():
    """Every channel holds weights of the past that sum to one less what is left of the beginning: it can not grow."""
    memory = HGRN2Config(d_model=12, n_heads=2).build().double()
    x = torch.randn(2, 500, 12, dtype=F64)
    values = (x @ memory.inputs.weight[24:].T).abs().amax()
    assert bool((memory(x, memory.init_state(2))[1].S.abs() <= values).all())


def test_a_lower_bound_keeps_what_an_open_gate_would_forget():
    memory = HGRN2Config(d_model=8, n_heads=2, lower_bound=0.9).build().double()
    with torch.no_grad():
        memory.inputs.weight[8:16] = 0
        x = torch.ones(1, 1, 8, dtype=F64)
        before = memory.init_state(1)._replace(S=torch.ones(1, 2, 4, 4, dtype=F64))
        memory.inputs.weight[16:] = 0  # nothing is written
        assert_close(memory(x, before)[1].S, torch.full((1, 2, 4, 4), 0.95, dtype=F64), rtol=1e-12, atol=0)


def test_the_state_costs_what_its_docstring_says():
    memory = HGRN2Config(d_model=32, n_heads=2).build()
    with torch.no_grad():
        assert state_bytes(memory.advance(torch.randn(3, 50, 32), memory.init_state(3))) == 4 * 3 * 2 * 16 * 16


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"d_model": 10}, "such as d_model=12"),
        ({"lower_bound": 1.0}, "lower_bound must lie in"),
        ({"conv_width": 0}, "conv_width"),
    ):
        with pytest.raises(ConfigError, match=words):
            HGRN2Config(**{"d_model": 16, **options})

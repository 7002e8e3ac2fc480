"""Gated linear attention against its equations, written out token by token; its limits."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.gla import GLAConfig
from memseq.state import state_bytes

F64 = torch.float64


def by_the_equations(memory, x):
    """One token and one head after the other."""
    c, (B, T, _) = memory.config, x.shape
    H, K, V = c.n_heads, memory.key_size, memory.value_size
    S, y, inputs = torch.zeros(B, H, K, V, dtype=F64), [], []
    for t in range(T):
        mixed, z, low = (x[:, t] @ memory.inputs.weight.T).split([2 * H * K + H * V, H * V, c.gate_rank], dim=-1)
        if memory.conv is not None:
            inputs.append(mixed)
            taps = memory.conv.weight
            mixed = F.silu(sum(inputs[t - i] * taps[:, -1 - i] for i in range(min(t + 1, taps.shape[1]))))
        q, k, v = mixed.split([H * K, H * K, H * V], dim=-1)
        w = (low @ memory.gate.weight.T + memory.gate.bias).sigmoid() ** (1 / c.gate_power)
        q, k, v, w = (s.view(B, H, -1) for s in (q, k, v, w))
        S = w[..., None] * S + k[..., None] * v[:, :, None]
        o = torch.einsum("b h k, b h k v -> b h v", q, S) / math.sqrt(K)
        o = memory.norm.weight * o / (o.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
        y.append((o.reshape(B, -1) * z * z.sigmoid()) @ memory.out.weight.T)
    return torch.stack(y, dim=1), S


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
@pytest.mark.parametrize("options", [{}, {"conv_width": 3}, {"key_size": 5, "value_size": 3, "gate_rank": 2, "gate_power": 3.0}], ids=str)
def test_outputs_state_and_gradients_are_those_of_the_equations(options, chunk_size):
    memory = GLAConfig(d_model=12, n_heads=2, chunk_size=chunk_size, **options).build().double()
    x = torch.randn(2, 19, 12, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, S = by_the_equations(memory, x)
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(state.S, S, rtol=1e-10, atol=1e-12)
    sources, seed = (x, *memory.parameters()), torch.randn_like(y)
    for f, w in zip(*(torch.autograd.grad((out * seed).sum(), sources) for out in (y, wanted)), strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-11)


def test_gates_that_are_open_make_it_linear_attention_and_closed_ones_leave_the_last_token():
    memory = GLAConfig(d_model=8, n_heads=2, gate_power=1.0).build().double()
    x = torch.randn(1, 30, 8, dtype=F64)
    q, k, v = (t.view(1, 30, 2, -1).transpose(1, 2) for t in (x @ memory.inputs.weight.T).split([4, 4, 8, 8, 16], dim=-1)[:3])
    with torch.no_grad():
        memory.gate.weight.zero_()
        for bias, wanted in ((1e3, (k.mT @ v)), (-1e3, k[:, :, -1:].mT @ v[:, :, -1:])):
            memory.gate.bias.fill_(bias)
            assert_close(memory(x, memory.init_state(1))[1].S, wanted, rtol=1e-12, atol=1e-12)


def test_the_gate_starts_where_the_paper_starts():
    memory = GLAConfig(d_model=64).build()
    with torch.no_grad():
        memory.gate.weight.zero_()
    logits = memory.gate(torch.randn(3, 16))
    assert_close((F.logsigmoid(logits) / 16).exp(), torch.full((3, 32 * 4), 0.5 ** (1 / 16))[:, : logits.shape[1]])


def test_the_state_costs_what_its_docstring_says_at_any_length():
    memory = GLAConfig(d_model=32, n_heads=2).build()
    with torch.no_grad():
        for tokens in (1, 7, 300):
            assert state_bytes(memory.advance(torch.randn(3, tokens, 32), memory.init_state(3))) == 4 * 3 * 2 * 8 * 16


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"d_model": 10}, "such as d_model=16"),
        ({"n_heads": 0}, "n_heads must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"gate_power": 0.0}, "gate_power must be above zero"),
    ):
        with pytest.raises(ConfigError, match=words):
            GLAConfig(**{"d_model": 16, **options})

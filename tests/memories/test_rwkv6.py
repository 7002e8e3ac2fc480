"""RWKV-6 against its equations, written out token by token; GLA's state as its own."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.rwkv6 import RWKV6Config
from memseq.state import state_bytes

F64 = torch.float64


def by_the_equations(memory, x):
    c, (B, T, D) = memory.config, x.shape
    H, K = c.n_heads, D // c.n_heads
    S, y, last = torch.zeros(B, H, K, K, dtype=F64), [], torch.zeros(B, D, dtype=F64)
    for t in range(T):
        now, before = x[:, t], last - x[:, t]
        last = now
        z = ((now + before * memory.mix_first) @ memory.mix_down.weight.T).tanh().view(B, 5, -1)
        x_r, x_w, x_k, x_v, x_g = (now + before * (memory.mixing[i] + z[:, i] @ memory.mix_up[i]) for i in range(5))
        r, k, v = (a @ layer.weight.T for a, layer in ((x_r, memory.receptance), (x_k, memory.key), (x_v, memory.value)))
        w = torch.exp(-torch.exp((x_w @ memory.decay.down.weight.T).tanh() @ memory.decay.up.weight.T + memory.decay.up.bias))
        r, k, v, w = (a.view(B, H, K) for a in (r, k, v, w))
        written = k[..., None] * v[:, :, None]
        o = (r[:, :, None] @ (S + memory.bonus[:, :, None] * written))[:, :, 0]
        S = w[..., None] * S + written
        o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, keepdim=True, unbiased=False) + c.norm_eps).sqrt()
        o = o.reshape(B, D) * memory.norm.weight + memory.norm.bias
        g = x_g @ memory.gate.weight.T
        y.append((o * g * g.sigmoid()) @ memory.out.weight.T)
    return torch.stack(y, dim=1), S


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
def test_outputs_state_and_gradients_are_those_of_the_equations(chunk_size):
    memory = RWKV6Config(d_model=12, n_heads=2, mix_rank=3, decay_rank=4, chunk_size=chunk_size).build().double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 19, 12, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, S = by_the_equations(memory, x)
    assert_close(y, wanted, rtol=1e-10, atol=1e-11)
    assert_close(state.S, S, rtol=1e-10, atol=1e-12)
    sources, seed = (x, *memory.parameters()), torch.randn_like(y)
    for f, w in zip(*(torch.autograd.grad((out * seed).sum(), sources) for out in (y, wanted)), strict=True):
        assert_close(f, w, rtol=1e-8, atol=1e-10)


def test_half_lives_at_the_start_reach_from_a_few_tokens_to_hundreds():
    memory = RWKV6Config(d_model=256, n_heads=4).build()
    with torch.no_grad():
        half_lives = math.log(2) / memory.decay.up.bias.exp()
    assert float(half_lives.min()) < 2
    assert float(half_lives.max()) > 250


def test_the_state_costs_what_its_docstring_says():
    memory = RWKV6Config(d_model=32, n_heads=2).build()
    with torch.no_grad():
        assert state_bytes(memory.advance(torch.randn(3, 50, 32), memory.init_state(3))) == 4 * 3 * 32 * (16 + 1)


def test_bad_configs_are_refused_in_words():
    for options, words in (({"d_model": 10}, "such as d_model=12"), ({"mix_rank": 0}, "mix_rank must be at least 1")):
        with pytest.raises(ConfigError, match=words):
            RWKV6Config(**{"d_model": 16, **options})

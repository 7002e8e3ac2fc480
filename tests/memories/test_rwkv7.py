"""RWKV-7 against its equations, written out token by token; GLA as the case without removal."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.rwkv7 import RWKV7Config
from memseq.ops.channel_decay import gla_recurrent
from memseq.state import state_bytes

F64 = torch.float64


def by_the_equations(memory, x):
    c, (B, T, D) = memory.config, x.shape
    H, K = c.n_heads, D // c.n_heads
    S, y, before = torch.zeros(B, H, K, K, dtype=F64), [], torch.zeros(B, D, dtype=F64)
    for t in range(T):
        x_r, x_w, x_k, x_v, x_a, x_g = (x[:, t] + (before - x[:, t]) * mu for mu in memory.mixing)
        before = x[:, t]
        r, k, v = (z @ layer.weight.T for z, layer in ((x_r, memory.receptance), (x_k, memory.key), (x_v, memory.value)))
        d = (x_w @ memory.decay.down.weight.T).tanh() @ memory.decay.up.weight.T + memory.decay.up.bias
        w = torch.exp(-math.exp(-0.5) * d.sigmoid())
        a = (x_a @ memory.rate.down.weight.T @ memory.rate.up.weight.T + memory.rate.up.bias).sigmoid()
        g = (x_g @ memory.gate.down.weight.T).sigmoid() @ memory.gate.up.weight.T
        kk = (k * memory.removal).view(B, H, K)
        kk = kk / kk.norm(dim=-1, keepdim=True)
        k = k * (1 + (a - 1) * memory.replacement)
        r, k, v, w, a = (z.view(B, H, K) for z in (r, k, v, w, a))
        S = w[..., None] * S - (a * kk)[..., None] * (kk[:, :, None] @ S) + k[..., None] * v[:, :, None]
        o = (r[:, :, None] @ S)[:, :, 0]
        o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, keepdim=True, unbiased=False) + memory.norm_eps).sqrt()
        o = o.reshape(B, D) * memory.norm.weight + memory.norm.bias + ((r * memory.bonus * k).sum(-1, keepdim=True) * v).reshape(B, D)
        y.append((o * g) @ memory.out.weight.T)
    return torch.stack(y, dim=1), S


def build(**options):
    """A memory none of whose weights is zero."""
    memory = RWKV7Config(d_model=12, n_heads=2, **options).build().double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return memory


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
@pytest.mark.parametrize("options", [{}, {"decay_rank": 3, "rate_rank": 2, "gate_rank": 5, "norm_eps": 1e-3}], ids=str)
def test_outputs_state_and_gradients_are_those_of_the_equations(options, chunk_size):
    memory = build(chunk_size=chunk_size, **options)
    x = torch.randn(2, 19, 12, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, S = by_the_equations(memory, x)
    assert_close(y, wanted, rtol=1e-10, atol=1e-11)
    assert_close(state.S, S, rtol=1e-10, atol=1e-12)
    sources, seed = (x, *memory.parameters()), torch.randn_like(y)
    for f, w in zip(*(torch.autograd.grad((out * seed).sum(), sources) for out in (y, wanted)), strict=True):
        assert_close(f, w, rtol=1e-8, atol=1e-10)


def test_with_a_rate_of_zero_nothing_is_removed_and_it_is_gla():
    memory = build()
    with torch.no_grad():
        memory.rate.up.weight.zero_()
        memory.rate.up.bias.fill_(-1e3)
        x = torch.randn(2, 30, 12, dtype=F64)
        before = torch.cat([torch.zeros(2, 1, 12, dtype=F64), x[:, :-1]], dim=1) - x
        x_w, x_k, x_v = (x + before * memory.mixing[i] for i in (1, 2, 3))
        k, log_w = memory.key(x_k) * (1 - memory.replacement), -math.exp(-0.5) * memory.decay(x_w).sigmoid()
        k, v, log_w = (z.unflatten(-1, (2, 6)).transpose(1, 2) for z in (k, memory.value(x_v), log_w))
        state = memory.init_state(2)
        assert_close(memory(x, state)[1].S, gla_recurrent(k, k, v, log_w, state.S)[1], rtol=1e-10, atol=1e-12)


def test_a_rate_of_one_without_decay_replaces_what_stands_under_a_key():
    """With the key of removal equal to that of writing, reading it back gives the newest value alone."""
    from memseq.ops.channel_decay import channel_chunkwise

    kk = torch.nn.functional.normalize(torch.randn(1, 1, 1, 6, dtype=F64), dim=-1).expand(1, 1, 9, 6)
    v, kept = torch.randn(1, 1, 9, 4, dtype=F64), torch.zeros(1, 1, 9, 6, dtype=F64)
    y, _ = channel_chunkwise(kk, kk, v, -kk, kk, kept, torch.randn(1, 1, 6, 4, dtype=F64), chunk_size=4)
    assert_close(y, v, rtol=1e-10, atol=1e-12)


def test_ranks_and_the_norm_follow_the_paper():
    memory = RWKV7Config(d_model=1024, n_heads=16).build()
    assert [m.down.out_features for m in (memory.decay, memory.rate, memory.gate)] == [
        64,
        64,
        160,
    ]  # 80, 80 and 160 to the nearest multiples of 32, halves down
    assert memory.norm.eps == pytest.approx(64e-5)


def test_half_lives_at_the_start_reach_from_a_few_tokens_to_hundreds():
    memory = RWKV7Config(d_model=256, n_heads=4).build()
    with torch.no_grad():
        half_lives = math.log(2) / (math.exp(-0.5) * memory.decay.up.bias.sigmoid())
    assert float(half_lives.min()) < 2
    assert float(half_lives.max()) > 300


def test_the_state_costs_what_its_docstring_says():
    memory = RWKV7Config(d_model=32, n_heads=2).build()
    with torch.no_grad():
        assert state_bytes(memory.advance(torch.randn(3, 50, 32), memory.init_state(3))) == 4 * 3 * 32 * (16 + 1)


def test_bad_configs_are_refused_in_words():
    for options, words in (({"d_model": 10}, "such as d_model=12"), ({"decay_rank": 0}, "decay_rank must be at least 1")):
        with pytest.raises(ConfigError, match=words):
            RWKV7Config(**{"d_model": 16, **options})

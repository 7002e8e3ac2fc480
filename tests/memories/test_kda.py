"""Kimi delta attention against its equations, written out token by token; Gated DeltaNet as the case of equal channels."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.kda import KDAConfig
from memseq.state import state_bytes

F64 = torch.float64


def by_the_equations(memory, x):
    c, (B, T, _) = memory.config, x.shape
    H, K, V = c.n_heads, memory.key_size, memory.value_size
    S, y, inputs = torch.zeros(B, H, K, V, dtype=F64), [], []
    taps = memory.heads.conv.weight
    for t in range(T):
        mixed, low_f, low_g, b = (x[:, t] @ memory.heads.inputs.weight.T).split([H * (2 * K + V), V, V, H], dim=-1)
        inputs.append(mixed)
        mixed = F.silu(sum(inputs[t - i] * taps[:, -1 - i] for i in range(min(t + 1, taps.shape[1]))))
        q, k, v = (s.view(B, H, -1) for s in mixed.split([H * K, H * K, H * V], dim=-1))
        q, k = (s / (s.square().sum(-1, keepdim=True) + 1e-6).sqrt() for s in (q, k))
        step = F.softplus(low_f @ memory.fade.weight.T + memory.dt_bias).view(B, H, K)
        w = (-memory.A_log.exp()[:, None] * step).exp()
        beta = c.strength * b.sigmoid()
        erase = torch.eye(K, dtype=F64) - beta[..., None, None] * k[..., None] * k[:, :, None]
        S = erase @ (w[..., None] * S) + beta[..., None, None] * k[..., None] * v[:, :, None]
        o = torch.einsum("b h k, b h k v -> b h v", q, S) / math.sqrt(K)
        o = memory.norm.weight * o / (o.square().mean(-1, keepdim=True) + c.norm_eps).sqrt()
        y.append((o.reshape(B, -1) * (low_g @ memory.open.weight.T + memory.open.bias).sigmoid()) @ memory.out.weight.T)
    return torch.stack(y, dim=1), S


@pytest.mark.parametrize("chunk_size", [1, 4, 16])
@pytest.mark.parametrize("options", [{}, {"key_size": 5, "value_size": 3, "conv_width": 2, "strength": 2.0}], ids=str)
def test_outputs_state_and_gradients_are_those_of_the_equations(options, chunk_size):
    memory = KDAConfig(d_model=12, n_heads=2, chunk_size=chunk_size, **options).build().double()
    x = torch.randn(2, 19, 12, dtype=F64, requires_grad=True)
    y, state = memory(x, memory.init_state(2))
    wanted, S = by_the_equations(memory, x)
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(state.S, S, rtol=1e-10, atol=1e-12)
    sources, seed = (x, *memory.parameters()), torch.randn_like(y)
    for f, w in zip(*(torch.autograd.grad((out * seed).sum(), sources) for out in (y, wanted)), strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-11)


def test_with_one_gate_for_the_channels_of_a_head_its_state_is_that_of_gated_deltanet():
    kda, gdn = KDAConfig(d_model=12, n_heads=2).build().double(), GatedDeltaNetConfig(d_model=12, n_heads=2).build().double()
    with torch.no_grad():
        kda.fade.weight.zero_()
        kda.dt_bias.copy_(gdn.gate.dt_bias.repeat_interleave(6))
        kda.A_log.copy_(gdn.gate.A_log)
        gdn.heads.conv.weight.copy_(kda.heads.conv.weight)
        mixed, extra, b = kda.heads.inputs.weight.split([36, 12, 2])
        gdn.heads.inputs.weight.copy_(torch.cat([mixed, torch.randn(12, 12), b, torch.zeros(2, 12)]))
    x = torch.randn(2, 40, 12, dtype=F64)
    assert_close(kda(x, kda.init_state(2))[1].S, gdn(x, gdn.init_state(2))[1].S, rtol=1e-10, atol=1e-12)


def test_the_state_costs_what_its_docstring_says():
    memory = KDAConfig(d_model=32, n_heads=2).build()
    with torch.no_grad():
        assert state_bytes(memory.advance(torch.randn(3, 50, 32), memory.init_state(3))) == 4 * 3 * 2 * (16 * 16 + 3 * 3 * 16)


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"d_model": 10}, "such as d_model=12"),
        ({"strength": 2.5}, "strength must lie in"),
        ({"chunk_size": 0}, "chunk_size"),
    ):
        with pytest.raises(ConfigError, match=words):
            KDAConfig(**{"d_model": 16, **options})

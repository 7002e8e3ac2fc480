"""Gated DeltaNet: what it becomes when a gate is held, and values that share keys."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.ops.linear_attention import decay_recurrent, delta_chunkwise


def test_with_its_gate_open_it_is_deltanet():
    gated = GatedDeltaNetConfig(d_model=8, n_heads=2, chunk_size=4).build().double()
    plain = DeltaNetConfig(d_model=8, n_heads=2, chunk_size=4).build().double()
    with torch.no_grad():
        gated.gate.dt_bias.fill_(-torch.inf)  # steps of nothing
        q_k_v, z, b, _ = gated.heads.inputs.weight.split([24, 8, 2, 2])
        plain.heads.inputs.weight.copy_(torch.cat([q_k_v, b]))
        plain.heads.conv.weight.copy_(gated.heads.conv.weight)
        gated.out.weight.copy_(torch.eye(8))
        plain.out.weight.copy_(torch.eye(8))
        x = torch.randn(2, 30, 8, dtype=torch.float64)
        y, state = gated(x, gated.init_state(2))
        expected, end = plain(x, plain.init_state(2))
        assert_close(y, expected * F.silu(x @ z.T), rtol=1e-10, atol=1e-12)
        assert_close(state.S, end.S, rtol=1e-10, atol=1e-12)


def test_where_nothing_is_erased_it_is_the_form_of_mamba2():
    """A write of strength e of a value of size 1 / e erases a share e and writes all: in the limit, decay alone."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 30, 4, dtype=torch.float64)
    v, log_a, S = torch.randn(1, 2, 30, 3).double(), -torch.rand(1, 2, 30).double(), torch.randn(1, 2, 4, 3).double()
    e = 1e-9
    found = delta_chunkwise(q, k, v / e, torch.full_like(log_a, e), log_a, S, chunk_size=8)
    for a, b in zip(found, decay_recurrent(q, k, v, log_a, S), strict=True):
        assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_values_that_share_keys_are_values_whose_keys_are_equal():
    shared = GatedDeltaNetConfig(d_model=8, n_heads=4, n_key_heads=2, key_size=3, value_size=2).build().double()
    alone = GatedDeltaNetConfig(d_model=8, n_heads=4, key_size=3, value_size=2).build().double()

    def repeated(rows):  # of q, k: each key head twice
        return rows.unflatten(0, (2, 3)).repeat_interleave(2, 0).flatten(0, 1)

    for part in ("inputs", "conv"):
        q, k, rest = getattr(shared.heads, part).weight.detach().split([6, 6, len(getattr(shared.heads, part).weight) - 12])
        with torch.no_grad():
            getattr(alone.heads, part).weight.copy_(torch.cat([repeated(q), repeated(k), rest]))
    alone.out.load_state_dict(shared.out.state_dict())
    alone.gate.load_state_dict(shared.gate.state_dict())
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    y, state = shared(x, shared.init_state(2))
    expected, end = alone(x, alone.init_state(2))
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert_close(state.S, end.S, rtol=1e-10, atol=1e-12)


def test_a_shut_gate_forgets_all_that_was():
    memory = GatedDeltaNetConfig(d_model=8, n_heads=2).build().double()
    with torch.no_grad():
        memory.gate.A_log.fill_(5.0)
        memory.gate.dt_bias.fill_(50.0)
    x, start = torch.randn(1, 9, 8, dtype=torch.float64), memory.init_state(1)
    full = start._replace(S=1e6 * torch.ones_like(start.S))
    assert_close(memory(x, full)[1].S, memory(x, start)[1].S, rtol=1e-12, atol=1e-12)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="n_heads=4 cannot share n_key_heads=3 equally; use a divisor of 4"):
        GatedDeltaNetConfig(d_model=8, n_key_heads=3)
    with pytest.raises(ConfigError, match=r"strength must lie in \(0, 2\]"):
        GatedDeltaNetConfig(d_model=8, strength=0.0)

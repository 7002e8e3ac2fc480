"""DeltaNet beside its rule, written out, and what the rule is for."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.deltanet import DeltaNetConfig


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_it_is_the_rule_of_the_paper(strength):
    memory = DeltaNetConfig(d_model=8, n_heads=2, key_size=3, value_size=5, strength=strength, chunk_size=4).build().double()
    with torch.no_grad():
        memory.norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 11, 8, dtype=torch.float64)
    mixed, b = memory.heads.inputs(x).split([22, 2], dim=-1)
    seen = F.pad(mixed, (0, 0, 3, 0))
    mixed = F.silu(sum(seen[:, i : i + 11] * memory.heads.conv.weight[:, i] for i in range(4)))
    q, k, v = (t.unflatten(-1, (2, -1)) for t in mixed.split([6, 6, 10], dim=-1))
    q, k = (t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in (q, k))
    S, beta = torch.zeros(2, 2, 3, 5, dtype=torch.float64), strength * b.sigmoid()
    for t in range(11):
        for row in range(2):
            for head in range(2):
                key, old = k[row, t, head], S[row, head].clone()
                S[row, head] = old + beta[row, t, head] * torch.outer(key, v[row, t, head] - key @ old)
        o = torch.einsum("bhk,bhkv->bhv", q[:, t] / 3**0.5, S)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * memory.norm.weight
        assert_close(memory(x[:, : t + 1], memory.init_state(2))[0][:, t], memory.out(o.flatten(1)), rtol=1e-10, atol=1e-12)
    assert_close(memory(x, memory.init_state(2))[1].S, S, rtol=1e-10, atol=1e-12)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match=r"strength must lie in \(0, 2\].*got 2.5"):
        DeltaNetConfig(d_model=8, strength=2.5)
    with pytest.raises(ConfigError, match="use a multiple of 4, such as d_model=12"):
        DeltaNetConfig(d_model=10)
    with pytest.raises(ConfigError, match="key_size must be at least 1"):
        DeltaNetConfig(d_model=8, key_size=0)

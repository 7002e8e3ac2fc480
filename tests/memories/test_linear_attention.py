"""Linear attention, and what the scalar-gated family has in common."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.linear_attention import LinearAttentionConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.retnet import RetNetConfig
from memseq.state import state_bytes

FAMILY = [
    LinearAttentionConfig(d_model=64),
    RetNetConfig(d_model=64),
    Mamba2Config(d_model=64),
    DeltaNetConfig(d_model=64),
    GatedDeltaNetConfig(d_model=64),
]


@pytest.mark.parametrize("config", FAMILY, ids=lambda c: type(c).__name__)
def test_bfloat16_autocast_is_off_by_the_written_error(config):
    torch.manual_seed(0)
    memory, x = config.build(), torch.randn(2, 300, 64)
    with torch.no_grad():
        exact, _ = memory(x, memory.init_state(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, state = memory(x, memory.init_state(2))
    assert float((found - exact).norm() / exact.norm()) < 0.012
    assert all(t.dtype != torch.bfloat16 for t in state)


@pytest.mark.parametrize("config", FAMILY, ids=lambda c: type(c).__name__)
def test_a_state_holds_what_its_docstring_says(config):
    memory = config.build()
    _, state = memory(torch.randn(3, 70, 64), memory.init_state(3))
    match config:
        case LinearAttentionConfig():
            numbers = 4 * 16 * (16 + 1)
        case RetNetConfig():
            numbers = 4 * 16 * 32 + 2  # the position has 8 bytes
        case Mamba2Config():
            numbers = 2 * 128 * 64 + 3 * (128 + 256)
        case DeltaNetConfig() | GatedDeltaNetConfig():
            numbers = 4 * 16 * 16 + 3 * 192
    assert state_bytes(state) == 3 * 4 * numbers


@pytest.mark.parametrize("config", FAMILY, ids=lambda c: type(c).__name__)
def test_the_chunk_size_is_no_part_of_the_function(config):
    memory, x = config.build().double(), torch.randn(2, 50, 64, dtype=torch.float64)
    exact, _ = memory(x, memory.init_state(2))
    for chunk_size in (1, 7, 50):
        memory.config = type(config)(**{**vars(config), "chunk_size": chunk_size})
        assert_close(memory(x, memory.init_state(2))[0], exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("features", ["elu", "relu"])
def test_it_is_attention_with_features_for_a_softmax(features):
    memory = LinearAttentionConfig(d_model=8, n_heads=2, features=features).build().double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = memory.inputs(x).view(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    phi = {"elu": lambda t: torch.where(t > 0, t + 1, t.exp()), "relu": F.relu}[features]
    weights = (phi(q) @ phi(k).mT).tril()
    o = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
    assert_close(memory(x, memory.init_state(2))[0], memory.out(o.transpose(1, 2).flatten(2)), rtol=1e-10, atol=1e-12)


def test_with_the_rms_norm_it_is_the_plain_sum():
    memory = LinearAttentionConfig(d_model=8, n_heads=2, features="identity", norm="rms").build().double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = memory.inputs(x).view(2, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
    o = (q @ k.mT).tril() @ v / 2
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y, state = memory(x, memory.init_state(2))
    assert_close(y, memory.out(o.transpose(1, 2).flatten(2)), rtol=1e-10, atol=1e-12)
    assert_close(state.S, k.mT @ v, rtol=1e-10, atol=1e-12)


def test_features_that_may_cancel_have_no_sum_to_divide_by():
    with pytest.raises(ConfigError, match="norm='sum' would divide by it; use 'rms'"):
        LinearAttentionConfig(d_model=8, features="identity")

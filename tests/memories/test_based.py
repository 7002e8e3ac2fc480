"""Based against its equations, and what its state costs."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.based import BasedConfig
from memseq.state import state_bytes

F64 = torch.float64


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_outputs_are_those_of_the_equations(chunk_size):
    memory = BasedConfig(d_model=12, n_heads=3, feature_size=5, chunk_size=chunk_size).build().double()
    x = torch.randn(2, 30, 12, dtype=F64)
    heads = memory.heads
    q, k, v = (layer(x).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (heads.query, heads.key, heads.value))
    z = q @ k.mT / math.sqrt(5)
    weights = (1 + z + z**2 / 2).tril()
    expected = heads.out(((weights / weights.sum(-1, keepdim=True)) @ v).transpose(1, 2).flatten(2))
    assert_close(memory(x, memory.init_state(2))[0], expected, rtol=1e-10, atol=1e-12)


def test_the_state_costs_what_its_docstring_says():
    memory = BasedConfig(d_model=32, n_heads=4, feature_size=16).build()
    with torch.no_grad():
        for T in (1, 100):
            assert state_bytes(memory(torch.randn(3, T, 32), memory.init_state(3))[1]) == 4 * 3 * 4 * 153 * (8 + 1)


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"feature_size": 0}, "feature_size must be"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"n_heads": 5}, "equal"),
    ):
        with pytest.raises(ConfigError, match=words):
            BasedConfig(**{"d_model": 12, "n_heads": 2, **options})

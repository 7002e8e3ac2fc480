"""Costs are counted on a stream that was really read."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.models import StackConfig
from memseq.probes import stream_costs
from memseq.state import state_bytes


def test_a_bounded_memory_holds_the_same_and_a_cache_holds_more():
    gru = StackConfig(vocab_size=11, d_model=8, layers=(GRUConfig(d_model=8),)).build()
    cache = StackConfig(vocab_size=11, d_model=8, layers=(AttentionConfig(d_model=8, n_heads=2),)).build()
    few, many = stream_costs(gru, lengths=(256, 32), steps=2, piece=50)
    assert (few.length, many.length) == (32, 256)
    assert few.state_bytes == many.state_bytes
    few, many = stream_costs(cache, lengths=(128, 1024), steps=2, piece=50)
    assert many.state_bytes >= 1024 * 2 * 8 * 4  # a key and a value of 8 float32 each, for every token
    assert many.state_bytes > 4 * few.state_bytes


def test_the_length_is_the_number_of_tokens_read(monkeypatch):
    model = StackConfig(vocab_size=11, d_model=8, layers=(GRUConfig(d_model=8),)).build()
    read = []
    advance = model.advance
    monkeypatch.setattr(model, "advance", lambda tokens, state: (read.append(tokens.shape[1]), advance(tokens, state))[1])
    (cost,) = stream_costs(model, lengths=(120,), steps=1, piece=50)
    assert read == [50, 50, 50, 20]  # the first is the warm-up
    assert cost.state_bytes == state_bytes(advance(torch.zeros(1, 1, dtype=torch.int64), model.init_state(1)))


def test_no_length_is_refused():
    with pytest.raises(ConfigError, match="must each be at least 1"):
        stream_costs(None, lengths=())

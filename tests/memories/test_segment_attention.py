"""Attention inside a segment: each segment is read as if it were a stream of its own."""

import pytest
import torch
from reading import aged, read
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.attention import AttentionConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.state import choose, stack, state_bytes

F64 = torch.float64
SMALL = {"d_model": 12, "n_heads": 2}


def build(L, **options):
    return SegmentAttentionConfig(**SMALL, segment_length=L, **options).build().double()


@pytest.mark.parametrize("cuts", [[33], [1] * 33, [3, 29, 1], [8, 25], [20, 4, 9]], ids=str)
@pytest.mark.parametrize("L", [1, 4, 8, 50])
def test_a_segment_is_full_attention_within_itself(L, cuts):
    memory, full = build(L), AttentionConfig(**SMALL).build().double()
    full.load_state_dict(memory.state_dict())
    x = torch.randn(2, 33, 12, dtype=F64, requires_grad=True)
    expected = torch.cat([full(segment, full.init_state(2))[0] for segment in x.split(L, dim=1)], dim=1)
    y, state = read(memory, x, cuts)
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    sources = (x, memory.heads.inputs.weight, memory.heads.out.weight)
    others = (x, full.heads.inputs.weight, full.heads.out.weight)
    grads = torch.autograd.grad(y.square().sum(), sources), torch.autograd.grad(expected.square().sum(), others)
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for kept, advanced in zip(state, memory.advance(x, memory.init_state(2)), strict=True):
        assert_close(kept, advanced, rtol=1e-12, atol=1e-14)


def test_nothing_passes_a_border():
    memory = build(6)
    x = torch.randn(1, 20, 12, dtype=F64, requires_grad=True)
    y, _ = memory(x, memory.init_state(1))
    for t in (0, 5, 6, 11, 19):
        (grad,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        assert (grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == list(range(t // 6 * 6, t + 1))


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [3, 1, 36]], ids=str)
def test_rows_at_different_phases_read_together_as_they_read_alone(cuts):
    memory = build(7)
    x = torch.randn(4, 60, 12, dtype=F64, requires_grad=True)
    ages = (0, 2, 7, 13)
    states = [aged(memory, x[row : row + 1, :age]) for row, age in enumerate(ages)]
    y, state = read(memory, torch.stack([x[row, age : age + 40] for row, age in enumerate(ages)]), cuts, stack(states))
    for row, age in enumerate(ages):
        alone, kept = memory(x[row : row + 1, : age + 40], memory.init_state(1))
        assert_close(y[row : row + 1], alone[:, age:], rtol=1e-10, atol=1e-12)
        for found, wanted in zip(state, kept, strict=True):
            assert_close(found[row : row + 1], wanted, rtol=1e-10, atol=1e-12)
        grads = [torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0][row] for z in (y[row], alone[:, age:])]
        assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_between_two_segments_a_stream_costs_nothing():
    memory = SegmentAttentionConfig(d_model=32, segment_length=8).build()
    with torch.no_grad():
        for T in (8, 24):
            assert state_bytes(memory(torch.randn(2, T, 32), memory.init_state(2))[1]) == 4 + 2 * 8
        state = memory(torch.randn(2, 8 + 3, 32), memory.init_state(2))[1]
        assert state_bytes(state) == 8 * 2 * 8 * 32 + 2 * 8
        for _ in range(5):
            state = memory.step(torch.randn(2, 32), state)[1]
        assert state_bytes(state) == 4 + 2 * 8


def test_a_stream_that_is_reset_begins_a_segment():
    memory = build(7)
    x = torch.randn(2, 20, 12, dtype=F64)
    state = memory.advance(x[:, :4], memory.init_state(2))
    y, _ = memory(x[:, 4:], choose(torch.tensor([False, True]), memory.init_state(2), state))
    assert_close(y[1:], memory(x[1:, 4:], memory.init_state(1))[0], rtol=1e-10, atol=1e-12)
    assert_close(y[:1], memory(x[:1], memory.init_state(1))[0][:, 4:], rtol=1e-10, atol=1e-12)


def test_bad_configs_are_refused_in_words():
    with pytest.raises(ConfigError, match="segment_length must be at least 1"):
        SegmentAttentionConfig(d_model=12, segment_length=0)
    with pytest.raises(ConfigError, match="such as d_model=12"):
        SegmentAttentionConfig(d_model=10, n_heads=4)

"""Full attention in blocks: equal to the formula, to one causal product, and to a window of blocks where there is a capacity."""

import math

import pytest
import torch
from reading import aged, read
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError, StateError
from memseq.memories.attention import AttentionConfig
from memseq.state import choose, fork, select, stack, state_bytes, tensors

F64 = torch.float64
SMALL = {"d_model": 12, "n_heads": 2}


def by_the_formula(memory, x, sees):
    """Every token over the tokens s with sees(t, s), features turned pair by pair."""
    B, T, D = x.shape
    H, K = memory.config.n_heads, D // memory.config.n_heads
    q, k, v = (z.view(B, T, H, K) for z in F.linear(x, memory.heads.inputs.weight).chunk(3, dim=-1))
    angles = torch.arange(T, dtype=F64)[:, None] * memory.config.rotary_base ** (-torch.arange(0, K, 2, dtype=F64) / K)

    def turn(z):
        even, odd, c, s = z[..., 0::2], z[..., 1::2], angles.cos()[:, None], angles.sin()[:, None]
        return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2)

    scores = torch.einsum("b t h k, b s h k -> b h t s", turn(q), turn(k)) / math.sqrt(K)
    seen = torch.tensor([[sees(t, s) for s in range(T)] for t in range(T)])
    o = torch.einsum("b h t s, b s h k -> b t h k", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    return F.linear(o.flatten(2), memory.heads.out.weight)


@pytest.mark.parametrize("cuts", [[37], [1] * 37, [5, 31, 1], [8, 8, 8, 8, 5], [3, 1, 33]], ids=str)
@pytest.mark.parametrize("block_size", [1, 8, 64])
def test_any_cut_equals_one_causal_pass(cuts, block_size):
    memory = AttentionConfig(**SMALL, block_size=block_size).build().double()
    x = torch.randn(2, 37, 12, dtype=F64, requires_grad=True)
    expected = by_the_formula(memory, x, lambda t, s: s <= t)
    y, state = read(memory, x, cuts)
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(y)
    sources = (x, *memory.parameters())
    for found, wanted in zip(
        torch.autograd.grad((y * seed).sum(), sources), torch.autograd.grad((expected * seed).sum(), sources), strict=True
    ):
        assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    for found, wanted in zip(state, memory.advance(x, memory.init_state(2)), strict=True):
        assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cuts", [[37], [1] * 37, [5, 31, 1], [3, 1, 33]], ids=str)
@pytest.mark.parametrize(("capacity", "block_size"), [(1, 1), (5, 1), (4, 4), (8, 4), (64, 4)])
def test_a_capacity_keeps_the_newest_blocks(cuts, capacity, block_size):
    memory = AttentionConfig(**SMALL, capacity=capacity, block_size=block_size).build().double()
    x = torch.randn(2, 37, 12, dtype=F64)
    blocks = capacity // block_size
    expected = by_the_formula(memory, x, lambda t, s: s <= t and s // block_size > t // block_size - blocks)
    y, state = read(memory, x, cuts)
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(memory.init_state(2))]
    assert state.closed_keys.shape[1] + state.open_keys.shape[1] == capacity


def test_it_is_bounded_where_it_has_a_capacity():
    assert AttentionConfig(**SMALL, capacity=256).build().bounded
    assert not AttentionConfig(**SMALL).build().bounded


@pytest.mark.parametrize("capacity", [None, 12])
def test_rows_of_different_ages_read_together_as_they_read_alone(capacity):
    memory = AttentionConfig(**SMALL, capacity=capacity, block_size=4).build().double()
    x = torch.randn(4, 30, 12, dtype=F64)
    ages = (0, 3, 4, 17)
    states = [aged(memory, x[row : row + 1, :age]) for row, age in enumerate(ages)]
    together = torch.stack([x[row, age : age + 13] for row, age in enumerate(ages)])
    y, state = read(memory, together, [1, 2, 1, 7, 2], stack(states))
    for row, age in enumerate(ages):
        alone, _ = read(memory, x[row : row + 1, : age + 13], [age + 13])
        assert_close(y[row : row + 1], alone[:, age:], rtol=1e-10, atol=1e-12)
        again, kept = memory(x[row : row + 1, -2:], select(state, [row]))
        expected, wanted = memory(x[row : row + 1, -2:], memory.advance(x[row : row + 1, : age + 13], memory.init_state(1)))
        assert_close(again, expected, rtol=1e-10, atol=1e-12)
        for found, t in zip(kept, wanted, strict=True):  # and a short row leaves the length of the others behind
            assert_close(found, t, rtol=1e-10, atol=1e-12)


def test_closed_blocks_are_shared_between_calls_and_only_the_open_one_is_copied():
    memory = AttentionConfig(**SMALL, block_size=8).build()
    with torch.no_grad():
        state = memory.advance(torch.randn(1, 20, 12), memory.init_state(1))
        after = memory.step(torch.randn(1, 12), state)[1]
        assert after.closed_keys.data_ptr() == state.closed_keys.data_ptr()
        assert after.open_keys.data_ptr() != state.open_keys.data_ptr()
        at_border = memory.advance(torch.randn(1, 4, 12), state)
    assert state_bytes(at_border) == 2 * 24 * 12 * 4 + 4 + 8  # 24 tokens of keys and values, an empty block, a position


def test_a_stream_can_be_reset_and_forked_among_others():
    memory = AttentionConfig(**SMALL, block_size=4).build().double()
    x = torch.randn(2, 21, 12, dtype=F64)
    state = memory.advance(x[:, :10], memory.init_state(2))
    fresh = select(stack([memory.init_state(2), state]), [0, 1])  # as wide as the others
    y, _ = memory(x[:, 10:], choose(torch.tensor([True, False]), fresh, state))
    assert_close(y[:1], memory(x[:1, 10:], memory.init_state(1))[0], rtol=1e-10, atol=1e-12)
    assert_close(y[1:], memory(x[1:, 10:], select(state, [1]))[0], rtol=1e-10, atol=1e-12)
    branches, _ = memory(x[:, 10:].repeat_interleave(2, 0), fork(state, 2))
    assert_close(branches[1::2], memory(x[:, 10:], state)[0], rtol=1e-10, atol=1e-12)


def test_dropout_falls_on_weights_while_training_only():
    memory = AttentionConfig(**SMALL, dropout=0.5).build()
    x = torch.randn(1, 9, 12)
    state = memory.init_state(1)
    assert not torch.equal(memory(x, state)[0], memory(x, state)[0])
    memory.eval()
    assert torch.equal(memory(x, state)[0], memory(x, state)[0])


def test_bad_configs_and_states_are_refused_in_words():
    with pytest.raises(ConfigError, match="such as d_model=12"):
        AttentionConfig(d_model=10, n_heads=4)
    with pytest.raises(ConfigError, match="use a multiple, such as capacity=256"):
        AttentionConfig(d_model=12, capacity=200)
    with pytest.raises(ConfigError, match="dropout must lie in"):
        AttentionConfig(d_model=12, dropout=1.0)
    memory = AttentionConfig(**SMALL).build()
    with pytest.raises(StateError, match="holds 3 streams and the input 2"):
        memory(torch.randn(2, 4, 12), memory.init_state(3))
    with pytest.raises(InputError, match="T = 0"):
        memory.advance(torch.randn(2, 0, 12), memory.init_state(2))

"""A window sees itself and the W - 1 tokens before it, at every position of an endless stream."""

import pytest
import torch
from reading import aged, read
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.attention import AttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.state import choose, stack, state_bytes, tensors

F64 = torch.float64
SMALL = {"d_model": 12, "n_heads": 2}


def build(window, **options):
    return SlidingWindowConfig(**SMALL, window=window, **options).build().double()


@pytest.mark.parametrize("window", [1, 2, 7, 64, 100])
def test_a_token_is_read_as_if_its_window_were_all_there_is(window):
    memory = build(window)
    full = AttentionConfig(**SMALL).build().double()
    full.load_state_dict(memory.state_dict())
    x = torch.randn(2, 230, 12, dtype=F64)
    y, _ = memory(x, memory.init_state(2))
    for t in (0, 1, 6, 63, 64, 99, 100, 128, 191, 229):
        alone, _ = full(x[:, max(0, t - window + 1) : t + 1], full.init_state(2))
        assert_close(y[:, t], alone[:, -1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [[30], [1] * 30, [7, 22, 1]], ids=str)
def test_a_window_as_long_as_the_stream_is_full_attention(cuts):
    memory, full = build(30), AttentionConfig(**SMALL, block_size=8).build().double()
    full.load_state_dict(memory.state_dict())
    x = torch.randn(2, 30, 12, dtype=F64, requires_grad=True)
    y, z = read(memory, x, cuts)[0], full(x, full.init_state(2))[0]
    assert_close(y, z, rtol=1e-10, atol=1e-12)
    assert_close(torch.autograd.grad(y.square().sum(), x)[0], torch.autograd.grad(z.square().sum(), x)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("window", "T"), [(1, 5), (4, 20), (70, 300)])
def test_one_layer_sees_its_window_and_nothing_else(window, T):
    memory = build(window)
    x = torch.randn(1, T, 12, dtype=F64, requires_grad=True)
    y, _ = memory(x, memory.init_state(1))
    for t in (0, window - 1, window, T - 1):
        if t < T:
            (grad,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
            reached = (grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
            assert reached == list(range(max(0, t - window + 1), t + 1))


@pytest.mark.parametrize("layers", [2, 3])
def test_the_receptive_field_of_layers_is_that_of_their_windows(layers):
    memories = [build(5) for _ in range(layers)]
    x = torch.randn(1, 40, 12, dtype=F64, requires_grad=True)
    h = x
    for memory in memories:
        h = h + read(memory, h, [9, 1, 30])[0]
    (grad,) = torch.autograd.grad(h[0, -1].square().sum(), x)
    assert (grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist() == list(range(39 - layers * 4, 40))


@pytest.mark.parametrize("cuts", [[300], [1] * 300, [64, 1, 200, 35], [90, 210]], ids=lambda c: str(c[:4]))
@pytest.mark.parametrize("window", [3, 70])
def test_any_cut_gives_the_same_outputs_state_and_gradients(window, cuts):
    memory = build(window)
    x = torch.randn(2, 300, 12, dtype=F64, requires_grad=True)
    whole, wanted = read(memory, x, [150, 150])
    y, state = read(memory, x, cuts)
    assert_close(y, whole, rtol=1e-10, atol=1e-12)
    for kept, other in zip(state, wanted, strict=True):
        assert_close(kept, other, rtol=1e-10, atol=1e-12)
    totals = [z.square().sum() + sum(t.square().sum() for t in s[:2]) for z, s in ((y, state), (whole, wanted))]
    grads = [torch.autograd.grad(total, (x, *memory.parameters())) for total in totals]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-11)
    for kept, other in zip(memory.advance(x, memory.init_state(2)), wanted, strict=True):
        assert_close(kept, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [[100], [1] * 100, [3, 1, 96]], ids=lambda c: str(c[:4]))
def test_rows_of_different_ages_read_together_as_they_read_alone(cuts):
    memory = build(6)
    x = torch.randn(3, 120, 12, dtype=F64)
    ages = (0, 2, 20)
    states = [aged(memory, x[row : row + 1, :age]) for row, age in enumerate(ages)]
    y, _ = read(memory, torch.stack([x[row, age : age + 100] for row, age in enumerate(ages)]), cuts, stack(states))
    for row, age in enumerate(ages):
        alone, _ = memory(x[row : row + 1, : age + 100], memory.init_state(1))
        assert_close(y[row : row + 1], alone[:, age:], rtol=1e-10, atol=1e-12)


def test_at_position_one_million_it_reads_as_at_the_start():
    memory = SlidingWindowConfig(d_model=64, window=50).build()
    x = torch.randn(1, 80, 64)
    with torch.no_grad():
        near, _ = memory(x, memory.init_state(1))
        state = memory.init_state(1)
        far, _ = memory(x, state._replace(position=state.position + 1_000_000))
        steps = read(memory, x, [49] + [1] * 31, memory.init_state(1))[0]
    blind = far[:, 50:]  # the first tokens there see the empty slots of a stream that was moved by hand
    assert_close(blind, near[:, 50:], rtol=0, atol=2e-5)
    assert_close(steps, near, rtol=0, atol=2e-5)


def test_a_stream_that_is_reset_has_forgotten():
    memory = build(5)
    x = torch.randn(2, 20, 12, dtype=F64)
    state = memory.advance(x[:, :9], memory.init_state(2))
    y, _ = memory(x[:, 9:], choose(torch.tensor([False, True]), memory.init_state(2), state))
    assert_close(y[1:], memory(x[1:, 9:], memory.init_state(1))[0], rtol=1e-10, atol=1e-12)
    assert_close(y[:1], memory(x[:1], memory.init_state(1))[0][:, 9:], rtol=1e-10, atol=1e-12)


def test_the_state_costs_what_its_docstring_says():
    memory = SlidingWindowConfig(d_model=32, window=10).build()
    fresh = memory.init_state(3)
    assert state_bytes(fresh) == 4 + 3 * 8
    with torch.no_grad():
        for T in (1, 9, 10, 200):
            state = memory(torch.randn(3, T, 32), fresh)[1]
            assert state_bytes(state) == 8 * 3 * 10 * 32 + 3 * 8
            assert [t.shape for t in tensors(state)] == [t.shape for t in tensors(fresh)]


def test_bad_configs_are_refused_in_words():
    with pytest.raises(ConfigError, match="a token sees itself"):
        SlidingWindowConfig(d_model=12, window=0)
    with pytest.raises(ConfigError, match="such as d_model=12"):
        SlidingWindowConfig(d_model=10, n_heads=4)
    with pytest.raises(ConfigError, match="even number of features"):
        SlidingWindowConfig(d_model=12, n_heads=4).build()

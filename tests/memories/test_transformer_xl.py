"""Transformer-XL against its equations, token by token, with the gradient stopped where the paper stops it."""

import math

import pytest
import torch
from reading import aged, read
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.checking import Effort
from memseq.contract import check_memory
from memseq.errors import ConfigError
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.ops.relative import sinusoids
from memseq.state import choose, stack, state_bytes

F64 = torch.float64
SHORT = Effort(bounded=300, finite=300, finite_unbounded=300, piece=150)
SMALL = {"d_model": 12, "n_heads": 2}
SHAPES = [
    {"window": 5, "segment_length": 4, "visible": "sliding"},
    {"window": 5, "segment_length": 4, "visible": "segment"},
    {"window": 3, "segment_length": 8, "visible": "sliding", "clamp": 2},
    {"window": 3, "segment_length": 8, "visible": "segment", "clamp": 6},
    {"window": 1, "segment_length": 1, "visible": "segment"},
    {"window": 0, "segment_length": 6, "visible": "segment"},
    {"window": 9, "segment_length": 5, "visible": "sliding", "gradient": "full"},
    {"window": 40, "segment_length": 40, "visible": "sliding"},
]


def build(**options):
    return TransformerXLConfig(**SMALL, **options).build().double()


def by_the_equations(memory, x):
    """§3.3 of the paper, one token and one head after the other; SG is a detach of the inputs, never of the projections."""
    c, (_, T, D) = memory.config, x.shape
    H, K, L = c.n_heads, D // c.n_heads, c.segment_length
    W_q, W_k, W_v = memory.heads.inputs.weight.view(3, H, K, D)
    W_R, y = memory.heads.relative.weight.view(H, K, D), []
    for i in range(T):
        border = i // L * L
        first = max(0, i - c.window + 1 if c.visible == "sliding" else border - c.window)
        stopped = [x[:, j].detach() if j < border and c.gradient == "stopped" else x[:, j] for j in range(first, i + 1)]
        distances = torch.tensor([min(i - j, i - j if c.clamp is None else c.clamp) for j in range(first, i + 1)])
        R, context, heads = sinusoids(distances, D), torch.stack(stopped, dim=1), []
        for h in range(H):
            q, k, v = x[:, i] @ W_q[h].T, context @ W_k[h].T, context @ W_v[h].T
            content = torch.einsum("b k, b s k -> b s", q + memory.heads.content_bias[h], k)
            position = torch.einsum("b k, s k -> b s", q + memory.heads.position_bias[h], R @ W_R[h].T)
            heads.append(torch.einsum("b s, b s k -> b k", ((content + position) / math.sqrt(K)).softmax(-1), v))
        y.append(torch.cat(heads, dim=-1) @ memory.heads.out.weight.T)
    return torch.stack(y, dim=1)


@pytest.mark.parametrize("cuts", [[21], [1] * 21, [8, 12, 1], [3, 9, 9]], ids=str)
@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_equations_for_any_cut(options, cuts):
    memory = build(**options)
    x = torch.randn(2, 21, 12, dtype=F64, requires_grad=True)
    expected = by_the_equations(memory, x)
    y, state = read(memory, x, cuts)
    assert_close(y, expected, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(y)
    sources = (x, *memory.parameters())
    grads = [torch.autograd.grad((z * seed).sum(), sources) for z in (y, expected)]
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for kept, advanced in zip(state, memory.advance(x, memory.init_state(2)), strict=True):
        assert_close(kept, advanced, rtol=0, atol=0)


@pytest.mark.parametrize("visible", ["sliding", "segment"])
def test_a_window_as_long_as_the_stream_is_full_attention_with_relative_positions(visible):
    whole = build(window=30, segment_length=30, visible=visible)
    x = torch.randn(2, 30, 12, dtype=F64)
    expected, _ = whole(x, whole.init_state(2))
    for options in ({"window": 30, "segment_length": 7, "visible": "sliding"}, {"window": 30, "segment_length": 4, "visible": "segment"}):
        memory = build(**options)
        memory.load_state_dict(whole.state_dict())
        assert_close(memory(x, memory.init_state(2))[0], expected, rtol=1e-10, atol=1e-12)


def test_without_a_window_segments_are_independent():
    memory = build(window=0, segment_length=6, visible="segment")
    x = torch.randn(2, 20, 12, dtype=F64)
    expected = torch.cat([memory(segment, memory.init_state(2))[0] for segment in x.split(6, dim=1)], dim=1)
    assert_close(memory(x, memory.init_state(2))[0], expected, rtol=1e-10, atol=1e-12)


def test_without_biases_and_positions_it_is_plain_attention():
    memory = build(window=20, segment_length=20)
    with torch.no_grad():
        for parameter in (memory.heads.content_bias, memory.heads.position_bias, memory.heads.relative.weight):
            parameter.zero_()
    x = torch.randn(2, 20, 12, dtype=F64)
    q, k, v = (z.view(2, 20, 2, 6).transpose(1, 2) for z in F.linear(x, memory.heads.inputs.weight).chunk(3, dim=-1))
    expected = memory.heads.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
    assert_close(memory(x, memory.init_state(2))[0], expected, rtol=1e-10, atol=1e-12)


def reach(y, x, t):
    (grad,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
    return (grad[0].abs().sum(-1) > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("cuts", [[24], [1] * 24, [9, 15]], ids=str)
def test_the_gradient_ends_at_borders_of_the_stream_not_of_the_calls(cuts):
    x = torch.randn(1, 24, 12, dtype=F64, requires_grad=True)
    stopped, full = build(window=10, segment_length=6), build(window=10, segment_length=6, gradient="full")
    whole = build(window=10, segment_length=6, visible="segment", gradient="full")
    for t in (5, 6, 17, 23):
        border = t // 6 * 6
        assert reach(read(stopped, x, cuts)[0], x, t) == list(range(max(border, t - 9), t + 1))
        assert reach(read(full, x, cuts)[0], x, t) == list(range(max(0, t - 9), t + 1))
        assert reach(read(whole, x, cuts)[0], x, t) == list(range(max(0, border - 10), t + 1))


def test_the_receptive_field_grows_by_a_window_a_layer():
    memories = [build(window=4, segment_length=5, gradient="full") for _ in range(3)]
    x = torch.randn(1, 30, 12, dtype=F64, requires_grad=True)
    h = x
    for memory in memories:
        h = h + memory(h, memory.init_state(1))[0]
    assert reach(h, x, 29) == list(range(29 - 3 * 3, 30))  # beyond n_layers (W - 1) tokens recall is chance by construction


@pytest.mark.parametrize("options", SHAPES[:6], ids=str)
@pytest.mark.parametrize("cuts", [[25], [1] * 25, [3, 1, 21]], ids=str)
def test_rows_of_different_ages_read_together_as_they_read_alone(options, cuts):
    memory = build(**options)
    x = torch.randn(4, 45, 12, dtype=F64, requires_grad=True)
    ages = (0, 1, 6, 17)
    states = [aged(memory, x[row : row + 1, :age]) for row, age in enumerate(ages)]
    y, state = read(memory, torch.stack([x[row, age : age + 25] for row, age in enumerate(ages)]), cuts, stack(states))
    for row, age in enumerate(ages):
        alone, kept = memory(x[row : row + 1, : age + 25], memory.init_state(1))
        assert_close(y[row : row + 1], alone[:, age:], rtol=1e-10, atol=1e-12)
        for found, wanted in zip(state, kept, strict=True):
            assert_close(found[row : row + 1], wanted, rtol=0, atol=0)
        grads = [torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0][row] for z in (y[row], alone[:, age:])]
        assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_a_cache_that_is_reset_is_masked_not_zero():
    memory = build(window=5, segment_length=4)
    x = torch.randn(2, 20, 12, dtype=F64)
    state = memory.advance(x[:, :9], memory.init_state(2))
    y, _ = memory(x[:, 9:], choose(torch.tensor([False, True]), memory.init_state(2), state))
    assert_close(y[1:], memory(x[1:, 9:], memory.init_state(1))[0], rtol=1e-10, atol=1e-12)
    assert_close(y[:1], memory(x[:1], memory.init_state(1))[0][:, 9:], rtol=1e-10, atol=1e-12)


def test_distances_are_embedded_anew_in_another_dtype():
    memory = TransformerXLConfig(**SMALL, window=300, segment_length=8).build().bfloat16().double()
    assert_close(memory.heads.distances, sinusoids(torch.arange(299, -1, -1), 12), rtol=0, atol=0)


def test_the_state_costs_what_its_docstring_says():
    memory = TransformerXLConfig(d_model=32, window=10, segment_length=4).build()
    with torch.no_grad():
        state = memory.advance(torch.randn(3, 12, 32), memory.init_state(3))
        assert state_bytes(state) == 4 * 3 * 10 * 32 + 4 + 3 * 8
        assert state_bytes(memory.step(torch.randn(3, 32), state)[1]) == 4 * 3 * (10 + 4) * 32 + 3 * 8


def test_segments_without_a_window_keep_the_law():
    config = TransformerXLConfig(**SMALL, window=0, segment_length=6, visible="segment", dropout=0.2)
    check_memory(config, effort=SHORT).raise_if_broken()


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"window": 0}, "window must be at least 1"),
        ({"segment_length": 0}, "segment_length must be at least 1"),
        ({"clamp": -1}, "clamp must be"),
        ({"d_model": 13, "n_heads": 1}, "even d_model"),
        ({"d_model": 13}, "such as d_model=14"),
    ):
        with pytest.raises(ConfigError, match=words):
            TransformerXLConfig(**{**SMALL, **options})
    for name in ("visible", "gradient"):  # a config file may say anything
        config = TransformerXLConfig(**SMALL)
        object.__setattr__(config, name, "all")
        with pytest.raises(ConfigError, match=f"{name} must be"):
            config.__post_init__()

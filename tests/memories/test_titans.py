"""Titans' neural memory: its equations by token, its reductions, its guards, its state."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.titans import TitansConfig
from memseq.ops.titans import titans_recurrent
from memseq.state import state_bytes

F64 = torch.float64
SMALL = {"d_model": 8, "n_heads": 2, "segment_length": 5}
SHAPES = [
    {},
    {"depth": 1, "momentum": None, "conv_width": 1},
    {"depth": 3, "form": "residual", "bias": True, "forget": None, "activation": "silu"},
    {"form": "normed", "gradient_limit": None},
    {"retention": "first", "forget": 0.3, "head_size": 3},
]


def build(**options):
    return TitansConfig(**{**SMALL, **options}).build().double()


def by_the_equations(memory, x):
    """The docstring, with the token recurrence in the place of the dual form."""
    c, (B, T, _) = memory.config, x.shape
    padded = F.pad(memory.associate.inputs(x), (0, 0, c.conv_width - 1, 0))
    mixed = sum(padded[:, i : i + T] * memory.associate.conv.weight[:, i] for i in range(c.conv_width))
    q, k, v = F.silu(mixed).view(B, T, 3, c.n_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = (z / z.norm(dim=-1, keepdim=True) for z in (q, k))
    home = tuple(memory.first) if c.retention == "first" else None
    limits = {"segment_length": c.segment_length, "limit": c.gradient_limit, "home": home}
    o, _ = titans_recurrent(memory.network, q, k, v, memory.gates(x), memory.init_state(B).fast, **limits)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * memory.readout.norm.weight
    return memory.readout.out(o.transpose(1, 2).flatten(2) * F.silu(memory.readout.gate(x)))


@pytest.mark.parametrize("options", SHAPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_equations_for_any_cut(options):
    memory = build(**options)
    x = torch.randn(2, 13, 8, dtype=F64, requires_grad=True)
    expected = by_the_equations(memory, x)
    seed, sources = torch.randn_like(expected), (x, *memory.parameters())
    wanted = torch.autograd.grad((expected * seed).sum(), sources)
    for cuts in ([13], [1] * 13, [4, 3, 6]):
        state, ys = memory.init_state(2), []
        for piece in x.split(cuts, dim=1):
            y, state = memory(piece, state)
            ys.append(y)
        y = torch.cat(ys, dim=1)
        assert_close(y, expected, rtol=1e-9, atol=1e-11)
        for found, true in zip(torch.autograd.grad((y * seed).sum(), sources), wanted, strict=True):
            assert_close(found, true, rtol=1e-7, atol=1e-9)


def test_gates_begin_where_the_config_says_and_stay_inside_their_limits():
    memory = build(forget=0.03, momentum=0.7, step=0.2, step_limit=0.5)
    gates = memory.gates(torch.zeros(1, 1, 8, dtype=F64))
    for found, wanted in ((1 - gates.keep.exp(), 0.03), (gates.momentum.exp(), 0.7), (gates.step, 0.2)):
        assert_close(found, torch.full_like(found, wanted), rtol=1e-6, atol=0)
    wild = memory.gates(1e4 * torch.randn(1, 50, 8, dtype=F64))
    assert wild.step.max() <= 0.5
    assert wild.keep.max() <= 0
    assert wild.momentum.max() <= 0
    heads = build(forget=(0.02, 0.7)).gates(torch.zeros(1, 1, 8, dtype=F64)).keep
    assert_close(1 - heads.exp(), torch.tensor([0.02, 0.7], dtype=F64)[None, :, None], rtol=1e-6, atol=0)
    assert build(forget=None).gates(torch.randn(1, 3, 8, dtype=F64)).keep.abs().max() == 0


def test_the_strict_online_rule_of_a_matrix_is_solved_and_is_the_same_function():
    online = {"segment_length": 1, "depth": 1}
    solved, stepped = build(**online, gradient_limit=None), build(**online, gradient_limit=1e9)
    stepped.load_state_dict(solved.state_dict())
    x = torch.randn(2, 40, 8, dtype=F64)
    (y, a), (z, b) = (memory(x, memory.init_state(2)) for memory in (solved, stepped))
    assert_close(y, z, rtol=1e-9, atol=1e-11)
    assert_close(a.fast.weights[0], b.fast.weights[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("steps", ["token", "segment"])
@pytest.mark.parametrize("retention", ["zero", "first"])
def test_two_layers_that_forget_towards_zero_end_there_and_have_no_gradient(retention, steps):
    """The saddle: what forgets soon is nothing after some hundred tokens, and learns no more; drawn to its first weights, it does."""
    torch.manual_seed(0)
    memory = build(retention=retention, steps=steps, forget=0.9 if steps == "segment" else 0.5, gradient_limit=None)
    with torch.no_grad():
        memory.rates.weight.zero_()
        state = memory.advance(torch.randn(1, 200, 8, dtype=F64), memory.init_state(1))
        q, k, v, _ = memory.associate(torch.randn(1, 20, 8, dtype=F64), state.tail)
        prediction, way = memory.network.kept(k, state.fast.anchor)
        first, last = (X.mT @ g for X, g in memory.network.factors(prediction - v, way, state.fast.anchor))
    if retention == "zero":
        assert max(float(z.abs().max()) for z in (*state.fast.weights, prediction, first, last)) < 1e-4
    else:
        assert float(last.norm()) > 0.1
        assert_close(state.fast.weights[0], memory.first[0][None].detach(), rtol=0, atol=0.1)


def test_a_memory_that_forgets_towards_its_first_weights_returns_to_them():
    """And one that never forgets is the same memory, bit for bit."""
    x, silence = torch.randn(2, 10, 8, dtype=F64), torch.zeros(2, 400, 8, dtype=F64)
    memory = build(retention="first", forget=0.3)
    with torch.no_grad():
        state = memory.advance(torch.cat([x, silence], dim=1), memory.init_state(2))
    for W, first in zip(state.fast.weights, memory.first, strict=True):
        assert_close(W, first.detach().expand_as(W), rtol=1e-9, atol=1e-9)
    never, published = build(retention="first", forget=None), build(forget=None)
    published.load_state_dict(never.state_dict())
    assert torch.equal(never(x, never.init_state(2))[0], published(x, published.init_state(2))[0])


def test_a_new_memory_says_nothing():
    memory = TitansConfig(**SMALL).build()
    said = memory.network(torch.randn(1, 2, 3, 4), [W[None] for W in memory.first])
    assert float(said.detach().abs().max()) == 0


@pytest.mark.parametrize("form", ["plain", "normed"])
def test_a_hostile_stream_stays_finite(form):
    """Steps at their limit, no forgetting to speak of, one key again and again with values a thousand times too large."""
    memory = TitansConfig(d_model=16, n_heads=2, segment_length=16, form=form).build()
    with torch.no_grad():
        memory.rates.bias += 12.0
        memory.rates.bias[0] -= 24.0
        state, x = memory.init_state(1), torch.randn(1, 1, 16)
        for _ in range(20):
            y, state = memory((1e3 * x).expand(1, 250, 16) + torch.randn(1, 250, 16), state)
    assert y.isfinite().all()
    assert all(W.isfinite().all() for W in (*state.fast.weights, *state.fast.momentum))


def test_the_state_costs_what_its_docstring_says():
    memory = TitansConfig(d_model=16, n_heads=2, segment_length=4).build()
    size, tail = 2 * (8 * 32 + 32 * 8), 3 * 48
    with torch.no_grad():
        border = memory.advance(torch.randn(3, 8, 16), memory.init_state(3))
        inside = memory.advance(torch.randn(3, 1, 16), border)
    assert state_bytes(border) == 3 * (4 * 2 * size + 4 * tail + 8)
    assert state_bytes(inside) == 3 * (4 * 3 * size + 4 * tail + 8)


def test_bad_configs_are_refused_in_words():
    for options, words in (
        ({"d_model": 9}, "cannot be split"),
        ({"segment_length": 0}, "segment_length must be at least 1"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"head_size": 0}, "head_size must be at least 1"),
        ({"forget": 1.0}, "inside"),
        ({"forget": (0.1, 0.0)}, "inside"),
        ({"forget": (0.1, 0.2, 0.3)}, "one for each of n_heads=2"),
        ({"momentum": 0.0}, "inside"),
        ({"step": 2.0}, "step must lie between"),
        ({"gradient_limit": 0.0}, "gradient_limit must be above 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            TitansConfig(**{**SMALL, **options})
    for name in ("form", "activation", "steps", "retention"):  # a config file may say anything
        config = TitansConfig(**SMALL)
        object.__setattr__(config, name, "other")
        with pytest.raises(ConfigError, match=f"{name} must be"):
            config.__post_init__()

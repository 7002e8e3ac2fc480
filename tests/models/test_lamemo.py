"""LaMemo: one layer is attention over the union of all keys seen, whenever they were seen."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.lamemo import LaMemoConfig
from memseq.ops.relative import sinusoids
from memseq.state import state_bytes

F64 = torch.float64
SMALL = {"vocab_size": 11, "d_model": 12, "n_heads": 2}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return LaMemoConfig(**SMALL, **options).build().double()


def tokens(*shape):
    return torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))


def union(model, ids, token, starts):
    """Attention of one token over its past, then over what it could newly see at each later segment's start; by the equations."""
    c, layer = model.config, model.layers[0]
    L, M, H = c.segment_length, c.window, c.n_heads
    x = model.embedding(ids) * math.sqrt(c.d_model)
    q, k, v = (z.unflatten(-1, (H, -1)) for z in layer.inputs(x).chunk(3, dim=-1))
    border = token // L * L
    keys = list(range(border - min(border, M), token + 1))
    for p in starts:
        if p > border and token >= p - M:
            reach = min(p, M, L if c.look_ahead is None else c.look_ahead)
            keys += [j for j in range(token + 1, p + 1) if j > p - reach]
    assert len(keys) == len(set(keys))
    R = layer.relative(sinusoids(torch.tensor([abs(token - j) for j in keys]), c.d_model)).unflatten(-1, (H, -1))
    bias = torch.stack([model.past_bias if j <= token else model.future_bias for j in keys])
    content = torch.einsum("b h k, b s h k -> b h s", q[:, token] + model.content_bias, k[:, keys])
    position = torch.einsum("b s h k, s h k -> b h s", q[:, token, None] + bias, R)
    weights = ((content + position) / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("b h s, b s h k -> b h k", weights, v[:, keys])


@pytest.mark.parametrize(("window", "look_ahead"), [(8, None), (3, None), (10, 2), (8, 0)])
def test_one_layer_is_attention_over_the_union_of_all_keys_seen(window, look_ahead):
    model = build(n_layers=1, window=window, segment_length=4, look_ahead=look_ahead)
    ids = tokens(2, 20)
    _, state = model(ids, model.init_state(2))
    starts, held = range(0, 20, 4), min(window, 20)
    for place in range(window - held, window):
        token = 20 - window + place
        assert_close(state.collected[:, 0, place], union(model, ids, token, starts), rtol=1e-10, atol=1e-12)


def test_one_layer_that_does_not_look_ahead_reads_as_transformer_xl():
    model = build(n_layers=1, window=6, segment_length=4, look_ahead=0)
    memory = TransformerXLConfig(d_model=12, n_heads=2, window=6, segment_length=4, visible="segment").build().double()
    layer = model.layers[0]
    with torch.no_grad():
        for name in ("inputs", "relative", "out"):
            getattr(memory.heads, name).weight.copy_(getattr(layer, name).weight)
        memory.heads.content_bias.copy_(model.content_bias)
        memory.heads.position_bias.copy_(model.past_bias)
    ids = tokens(2, 19)
    x = model.embedding(ids) * math.sqrt(12)
    h = layer.norm(x + memory(x, memory.init_state(2))[0])
    expected = layer.ff_norm(h + layer.ff(h))
    assert_close(model.features(ids, model.init_state(2))[0], expected, rtol=1e-10, atol=1e-12)


def test_a_token_to_the_right_of_a_kept_one_changes_what_is_kept_of_it_and_no_earlier_output():
    """Of two deeper layers: token 1 is refreshed at the start of the next segment by token 2, which it could not see when it was read."""
    model = build(n_layers=2, window=4, segment_length=4)
    a, b = tokens(1, 8), tokens(1, 8)
    b[0, 2] = (a[0, 2] + 1) % 11
    ya, yb = (model(ids, model.init_state(1))[0] for ids in (a, b))
    assert torch.equal(ya[:, :2], yb[:, :2])
    states = [model(ids[:, :5], model.init_state(1))[1] for ids in (a, b)]
    kept = [state.collected[:, 0, 1] for state in states]  # token 1, now in the memory
    assert (kept[0] - kept[1]).abs().max() > 1e-6
    blind = build(n_layers=2, window=4, segment_length=4, look_ahead=0)
    states = [blind(ids[:, :5], blind.init_state(1))[1] for ids in (a, b)]
    assert torch.equal(states[0].collected[:, 0, 1], states[1].collected[:, 0, 1])


def test_the_gradient_reaches_the_refreshed_states_and_ends_at_the_border():
    model = build(n_layers=2, window=4, segment_length=4)
    _, state = model(tokens(1, 4), model.init_state(1))
    assert not state.collected.requires_grad
    assert not state.embedded.requires_grad
    y, _ = model(tokens(1, 4), state)
    assert torch.autograd.grad(y.square().sum(), model.future_bias)[0].abs().max() > 0


def test_normalisers_stay_finite_over_many_segments_and_bytes_do_not_grow():
    torch.manual_seed(0)
    model = LaMemoConfig(**SMALL, n_layers=2, window=2, segment_length=1).build()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # large scores
        _, state = model(tokens(1, 10), model.init_state(1))
        held = state_bytes(state)
        _, state = model(tokens(1, 3000), state)
    assert state.lse.isfinite().all()
    assert state.collected.isfinite().all()
    assert state_bytes(state) == held


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"look_ahead": 9}, "look_ahead must lie in 0 to segment_length=4"),
        ({"n_layers": 0}, "n_layers must be at least 1"),
        ({"d_model": 10, "n_heads": 4}, "cannot be split"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        LaMemoConfig(**{**SMALL, "window": 4, "segment_length": 4, **change})

"""Aaren against attention with its learned query over every prefix, and what a running mean is bound to."""

import pytest
import torch
from reading import read
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.memories.aaren import AarenConfig
from memseq.models.stack import StackConfig
from memseq.state import state_bytes
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import replay_backward

F64 = torch.float64
D, H = 12, 2


def build(**options):
    return AarenConfig(d_model=D, n_heads=H, **options).build().double()


def by_attention(memory, x):
    """A plain attention layer whose queries are one token, repeated."""
    q = (memory.token @ memory.query.weight.T)[:, None].expand(-1, x.shape[1], -1)  # [R, T, D]
    k, v = x @ memory.key.weight.T, x @ memory.value.weight.T
    by_head = [t.unflatten(-1, (H, -1)).transpose(-3, -2) for t in (q, k, v)]
    heads = [F.scaled_dot_product_attention(q_r.expand_as(by_head[1]), *by_head[1:], is_causal=True) for q_r in by_head[0]]
    return torch.stack(heads, dim=2).permute(0, 3, 1, 2, 4).flatten(2) @ memory.out.weight.T


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [17, 1, 22]], ids=lambda c: str(c[:3]))
@pytest.mark.parametrize("readouts", [1, 3])
def test_it_is_attention_with_a_learned_query(readouts, cuts):
    memory = build(n_readouts=readouts)
    x = torch.randn(2, 40, D, dtype=F64, requires_grad=True)
    wanted = by_attention(memory, x)
    y, _ = read(memory, x, cuts)
    assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(t.square().sum(), (x, *memory.parameters())) for t in (y, wanted)]
    for found, want in zip(*grads, strict=True):
        assert_close(found, want, rtol=1e-10, atol=1e-11)


def test_readouts_are_as_many_memories():
    """R learned tokens over the same keys and values are R Aarens of one token each, whose outputs are added."""
    memory, x = build(n_readouts=3), torch.randn(2, 20, D, dtype=F64)
    y, total = memory(x, memory.init_state(2))[0], 0
    columns = memory.out.weight.unflatten(1, (H, 3, -1))
    for r in range(3):
        alone = build()
        alone.load_state_dict(
            {"token": memory.token[r : r + 1], "out.weight": columns[:, :, r].flatten(1)}
            | {f"{name}.weight": getattr(memory, name).weight for name in ("query", "key", "value")}
        )
        total = total + alone(x, alone.init_state(2))[0]
    assert_close(y, total, rtol=1e-12, atol=1e-12)


def test_it_has_a_vector_more_than_an_attention_layer():
    assert sum(p.numel() for p in AarenConfig(d_model=512, n_heads=8).build().parameters()) == 4 * 512**2 + 512


@pytest.mark.parametrize("cuts", [[5, 15], [1, 19], [7, 6, 7]], ids=str)
def test_shards_of_a_stream_are_merged_into_the_stream(cuts):
    memory, x = build(n_readouts=2), torch.randn(3, 20, D, dtype=F64)
    whole = memory.advance(x, memory.init_state(3))
    merged = memory.init_state(3)
    for shard in x.split(cuts, dim=1):
        merged = memory.merge(merged, memory.advance(shard, memory.init_state(3)))
    for found, wanted in zip(merged, whole, strict=True):
        assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_states_behind_a_gate_are_not_merged():
    memory = build(forget="gate")
    with pytest.raises(ConfigError, match="read the second stream after the first"):
        memory.merge(memory.init_state(1), memory.init_state(1))


def test_without_scores_it_is_a_mean_and_its_thousandth_token_moves_it_by_a_thousandth():
    memory, x = build(), torch.randn(1, 1000, D, dtype=F64)
    with torch.no_grad():
        memory.token.zero_()
        y, state = memory(x, memory.init_state(1))
    mean = (x @ memory.value.weight.T).cumsum(1) / torch.arange(1, 1001)[:, None]
    assert_close(y, mean @ memory.out.weight.T, rtol=1e-12, atol=1e-12)
    assert_close(state.weight, torch.full((1, H), 1000.0, dtype=F64), rtol=1e-12, atol=0)


def test_with_a_gate_the_past_fades():
    """Gates of one half: the mean of the last tokens, whatever came long before."""
    memory = build(forget="gate")
    with torch.no_grad():
        memory.gate.weight.zero_()
        memory.gate.bias.zero_()
    x = torch.randn(1, 120, D, dtype=F64)
    other = torch.cat([torch.randn(1, 60, D, dtype=F64), x[:, 60:]], dim=1)
    ends = [memory(t, memory.init_state(1))[0][:, -1] for t in (x, other)]
    assert_close(*ends, rtol=0, atol=1e-12)
    never = build()
    ends = [never(t, never.init_state(1))[0][:, -1] for t in (x, other)]
    assert float((ends[0] - ends[1]).detach().abs().max()) > 1e-3


def test_the_state_costs_what_its_docstring_says():
    memory = AarenConfig(d_model=32, n_heads=4).build()
    with torch.no_grad():
        for T in (1, 100, 3000):
            assert state_bytes(memory(torch.randn(3, T, 32), memory.init_state(3))[1]) == 4 * 3 * (32 + 2 * 4)
            assert state_bytes(memory.advance(torch.randn(3, T, 32), memory.init_state(3))) == 4 * 3 * (32 + 2 * 4)


def test_a_stack_of_them_trains_by_replay_as_by_bptt():
    torch.manual_seed(1)
    model = StackConfig(vocab_size=7, d_model=8, layers=2 * (AarenConfig(d_model=8, n_heads=2),)).build().double()
    cell, tokens = StreamCell(model), torch.randint(7, (2, 25))
    segments = [Segment(t, t, torch.full((2,), i == 0)) for i, t in enumerate(tokens.split(5, dim=1))]
    replay_backward(cell, segments, model.init_state(2))
    found = [p.grad.clone() for p in model.parameters()]
    loss = model.loss(tokens, tokens, model.init_state(2))[0]
    for f, w in zip(found, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-12)


def test_under_autocast_advancing_and_reading_leave_one_state():
    memory, x = AarenConfig(d_model=D, n_heads=H).build(), torch.randn(2, 40, D)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        start = memory.init_state(2)
        for found, wanted in zip(memory.advance(x, start), memory(x, start)[1], strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_heads": 5}, "such as d_model=15"),
        ({"n_readouts": 0}, "n_readouts=0 and chunk_size=16 must be at least 1"),
    ],
)
def test_bad_configs_are_refused_in_words(options, said):
    with pytest.raises(ConfigError, match=said):
        AarenConfig(d_model=D, **options)

"""Scores of attention whose heads are known, and the heads of our own models shown and silenced."""

from contextlib import contextmanager

import pytest
import torch

from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import MemformerLMConfig, StackConfig
from memseq.probes import Anatomy
from memseq.probes.retrieval_heads import RetrievalHeadsProbe, head_scores
from memseq.recipes.probe_attention import attention_of
from memseq.recipes.probe_subject import anatomy_of

V, D, H = 40, 16, 2


def test_scores_of_known_attention():
    """Head 0 looks at the answer, head 1 never, head 2 in one of two right trials; wrong trials do not count."""
    at = torch.tensor([3, 1, 2])
    right = torch.tensor([True, True, False])
    weights = torch.full((3, 3, 5), 0.1)
    for head, looked in enumerate([[3, 1, 0], [0, 0, 2], [3, 4, 2]]):
        for row, place in enumerate(looked):
            weights[head, row, place] = 0.6
    score, mass = head_scores(weights, at, right)
    assert score.tolist() == [1.0, 0.0, 0.5]
    assert mass.tolist() == pytest.approx([0.6, 0.1, 0.35])
    assert head_scores(weights, at, ~right & right)[0].tolist() == [0.0, 0.0, 0.0]


def test_a_model_that_recalls_by_one_head_loses_all_without_it(subject, fifo):
    """A queue whose recall is switched off with head (1, 0): the strongest is found, and others cost nothing."""
    model = fifo(200)
    off: list = []
    held = model.step

    def step(tokens, state):
        logits, state = held(tokens, state)
        return (torch.zeros_like(logits) if (1, 0) in off else logits), state

    model.step = step

    class Known:
        heads = [(layer, head) for layer in range(2) for head in range(6)]

        def weights(self, tokens):
            rows = torch.full((12, *tokens.shape), 0.01)
            for row, line in enumerate(tokens.tolist()):
                rows[:, row, 0] = 0.5  # all but one look at the beginning
                rows[6, row, line.index(line[-1]) + 1] = 0.9
            return rows

        @contextmanager
        def silenced(self, heads):
            off[:] = heads
            yield
            off.clear()

    made = subject(model, anatomy=Anatomy(attention=Known()))
    found = RetrievalHeadsProbe(samples=16).run(made)
    assert found["accuracy"] == 1.0
    assert found["successes"] == found["trials"] == 64
    assert [(h["layer"], h["head"]) for h in found["heads"] if h["score"] >= 0.1] == [(1, 0)]
    assert found["heads"][6]["score"] == 1.0
    assert found["heads"][6]["mass"] == pytest.approx(0.9)
    assert found["retrieval_heads"] == 1
    assert found["silenced"] == 2
    assert found["without_top"] < 0.3
    assert found["without_others"] == [1.0] * 4
    assert "1 of 12, by 64 right answers of 64; the strongest (layer 2, head 1) looks at 100%" in found["says"][0]["answer"]


def stack():
    layers = (AttentionConfig(d_model=D, n_heads=H), SlidingWindowConfig(d_model=D, n_heads=H, window=5))
    return StackConfig(vocab_size=V, d_model=D, layers=layers).build().double()


def memformer():
    local = SlidingWindowConfig(d_model=D, n_heads=H, window=7)
    slots = SlotsConfig(d_model=D, n_heads=H, n_slots=3, segment_length=4)
    return MemformerLMConfig(vocab_size=V, d_model=D, layers=(local, local), slots=slots).build().double()


@pytest.mark.parametrize("build", [stack, memformer])
@torch.no_grad()
def test_weights_times_values_are_what_a_head_reads(build):
    model, tokens = build(), torch.randint(V, (3, 11))
    attention = attention_of(model)
    values, reads = [[] for _ in attention.memories], [[] for _ in attention.memories]
    hooks = []
    for layer, memory in enumerate(attention.memories):
        hooks.append(memory.heads.register_forward_hook(lambda _, given, made, layer=layer: values[layer].append(made[2])))
        hooks.append(memory.heads.out.register_forward_pre_hook(lambda _, given, layer=layer: reads[layer].append(given[0])))
    model(tokens, model.init_state(3))
    for hook in hooks:
        hook.remove()
    weights = attention.weights(tokens)
    assert weights.shape == (len(attention.heads), 3, 11)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), 3, dtype=torch.float64))
    for layer in range(len(attention.memories)):
        v = torch.cat(values[layer], dim=2)
        expected = torch.cat(reads[layer], dim=1)[:, -1].unflatten(-1, (H, -1))
        for head in range(H):
            read = torch.einsum("bt, btk -> bk", weights[layer * H + head], v[:, head])
            torch.testing.assert_close(read, expected[:, head], rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_a_silenced_head_adds_nothing():
    model, tokens = stack(), torch.randint(V, (2, 9))
    attention = attention_of(model)

    def logits():
        return model(tokens, model.init_state(2))[0]

    whole = logits()
    with attention.silenced([]):
        assert torch.equal(logits(), whole)
    with attention.silenced([(1, 0)]):
        without = logits()
    part = attention.memories[1].heads.out.weight
    kept = part.clone()
    part[:, : D // H] = 0  # what the head's columns would add
    torch.testing.assert_close(logits(), without, rtol=1e-12, atol=1e-12)
    part.copy_(kept)
    assert torch.equal(logits(), whole)
    assert not torch.equal(without, whole)


def test_models_without_attention_have_no_heads():
    from memseq.memories.gru import GRUConfig

    assert anatomy_of(StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),)).build()).attention is None
    assert len(anatomy_of(stack()).attention.heads) == 4

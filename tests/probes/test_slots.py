"""The weights that the probe shows are those the writer and the reader used."""

import math

import pytest
import torch

from memseq.layers.slots import SlotReader, SlotsConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import MemformerLMConfig
from memseq.ops.memformer import split_heads
from memseq.probes import Subject
from memseq.probes.slots import SlotsProbe, half_lives, read_weights, write_weights
from memseq.recipes.probe_subject import anatomy_of

D, L, N, H = 8, 4, 3, 2


def writer(**more):
    return SlotsConfig(d_model=D, n_heads=H, n_slots=N, segment_length=L, forget="none", **more).build().double()


def test_new_slots_are_what_the_weights_say():
    """One head: the slots after a segment are the shares of the tokens' values and of the old slots."""
    one = SlotsConfig(d_model=D, n_heads=1, n_slots=N, segment_length=L, forget="none", keep_bias=0.7).build().double()
    state = one.init_state(2)
    state = state._replace(slots=torch.randn(2, N, D, dtype=torch.float64))
    tokens = torch.randn(2, L, D, dtype=torch.float64)
    write, keep = write_weights(one, tokens, state.slots)
    torch.testing.assert_close(write.sum(-1) + keep, torch.ones(2, N, dtype=torch.float64))
    expected = write @ one.value(tokens) + keep[..., None] * state.slots
    torch.testing.assert_close(one(tokens, state).slots, expected, rtol=1e-10, atol=1e-12)


def test_reads_are_what_the_weights_say():
    reader = SlotReader(D, 1).double()
    torch.nn.init.normal_(reader.out.weight)
    tokens, slots = torch.randn(2, 5, D, dtype=torch.float64), torch.randn(2, N, D, dtype=torch.float64)
    expected = reader.out(read_weights(reader, tokens, slots) @ reader.value(slots))
    torch.testing.assert_close(reader(tokens, slots), expected, rtol=1e-10, atol=1e-12)


def test_heads_are_averaged():
    many, tokens, slots = writer(), torch.randn(1, L, D, dtype=torch.float64), torch.randn(1, N, D, dtype=torch.float64)
    q, own, k = (split_heads(t, H) for t in (many.query(slots), many.key(slots), many.key(tokens)))
    logits = torch.cat([(q * own).sum(-1, keepdim=True), q @ k.mT], dim=-1) / (math.sqrt(D // H) * many.config.temperature)
    write, keep = write_weights(many, tokens, slots)
    torch.testing.assert_close(torch.cat([keep[..., None], write], dim=-1), logits.softmax(-1).mean(1))


def test_a_slot_that_keeps_a_half_a_segment_has_a_half_life_of_one():
    keep = torch.tensor([[0.5, 0.25, 1.0], [0.5, 0.25, 1.0]])
    assert half_lives(keep) == [pytest.approx(1.0), pytest.approx(0.5), None]


@pytest.mark.parametrize("memory", ["shared", "per_layer"])
def test_maps_over_text_follow_the_stream(memory):
    local = SlidingWindowConfig(d_model=D, n_heads=2, window=L)
    slots = SlotsConfig(d_model=D, n_heads=H, n_slots=N, segment_length=L, keep_bias=1.0)
    model = MemformerLMConfig(vocab_size=16, d_model=D, layers=(local, local), slots=slots, memory=memory).build()
    made = Subject(name="slots", model=model, anatomy=anatomy_of(model))
    found = SlotsProbe(length=40, shown=3, warm=2).run(made)
    assert (found["segment_length"], found["n_slots"], len(found["maps"])) == (L, N, 3)
    with torch.no_grad():  # the first map, from the definition: slots after two segments, tokens' features of the third
        state = model.init_state(1)
        for number in range(2):
            state = model.advance(made.text(L, start=L * number)[None], state)
        before = state.slots[0].slots
        hidden = []
        hook = model.writes[0].register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        model.advance(made.text(L, start=2 * L)[None], state)
        hook.remove()
        write, keep = write_weights(model.writes[0], hidden[0], before)
    shown = found["maps"][0]
    assert torch.tensor(shown["write"]).shape == (N, L)
    torch.testing.assert_close(torch.tensor(shown["write"]), write[0].float(), rtol=0, atol=6e-5)
    torch.testing.assert_close(torch.tensor(shown["keep"]), keep[0].float(), rtol=0, atol=6e-5)
    torch.testing.assert_close(torch.tensor(shown["read"]).sum(0), torch.ones(L), rtol=0, atol=1e-3)
    assert shown["tokens"] == made.text(L, start=2 * L).tolist()
    assert all(not m._forward_pre_hooks for m in model.modules())

"""A perfect memory scores 1, an empty one chance, and a queue of n tokens a step at n."""

import math

import pytest
import torch

from memseq.errors import DataError
from memseq.probes import find_probe
from memseq.probes.asking import Alphabet, Pairs, ask, read_on, surprisal
from memseq.probes.recall import CapacityProbe, RecallProbe, reach, score

SMALL = {"length": 256, "samples": 32}


@pytest.mark.parametrize("with_text", [True, False])
def test_a_perfect_memory_scores_one_everywhere(subject, fifo, with_text):
    found = RecallProbe(**SMALL).run(subject(fifo(4096), with_text=with_text))
    assert found["distances"] == [0, 16, 64, 256]
    assert found["loads"] == [1, 2, 4, 8, 16, 32][: len(found["loads"])]
    assert all(a == 1.0 for row in found["accuracy"] for a in row)
    assert all(b == pytest.approx(-math.log2(found["chance"]), abs=1e-6) for row in found["bits"] for b in row)
    assert "256 tokens or more" in found["says"][0]["answer"]


def test_an_empty_memory_scores_chance(subject, leaky):
    found = RecallProbe(length=16, samples=64).run(subject(leaky(0.5)))
    assert found["asked"][:3] == [64, 128, 256]
    for row, asked in zip(found["accuracy"], found["asked"], strict=True):
        for a in row:  # four deviations
            assert abs(a - found["chance"]) < 4 * math.sqrt(found["chance"] / asked)
    assert all(b == 0.0 for row in found["bits"] for b in row)
    assert found["says"][0]["answer"] == "not at all"


@pytest.mark.parametrize("n", [20, 70])
def test_a_queue_of_n_tokens_is_a_step_at_n(subject, fifo, n):
    """A pair is known if the key and the value are among the last n tokens, the question among them."""
    found = RecallProbe(loads=(1, 4), samples=64, length=256).run(subject(fifo(n)))
    for load, accuracies in zip(found["loads"], found["accuracy"], strict=True):
        for distance, accuracy in zip(found["distances"], accuracies, strict=True):
            places = [2 * (load - i) + distance + 1 for i in range(load)]  # of each key, counted from the end
            known = sum(place <= n for place in places) / load
            expected = known + (1 - known) * found["chance"]
            assert accuracy == pytest.approx(expected, abs=0.0 if known in (0.0, 1.0) and known else 0.17)
            if known == 1:
                assert accuracy == 1.0


def test_capacity_of_a_queue(subject, fifo):
    """It holds (n - 1) / 2 pairs, in 4 n bytes."""
    found = CapacityProbe(samples=64, loads=(1, 2, 4, 8, 16)).run(subject(fifo(17)))
    assert found["load_at_90_percent"] == 8
    assert found["items"] == pytest.approx(8, abs=2.5)
    at = {row["load"]: row for row in found["rows"]}
    assert at[8]["items"] == 8
    assert at[8]["bits"] == pytest.approx(8 * math.log2(1 / at[8]["chance"]), abs=1e-4)
    assert found["state_bytes"] == 4 * 17
    assert found["bits_per_state_byte"] == pytest.approx(found["bits"] / 68)


def test_no_memory_has_no_capacity(subject, leaky):
    found = CapacityProbe(samples=16, loads=(1, 8, 16)).run(subject(leaky(0.9)))
    assert found["items"] == found["bits"] == 0.0


def test_questions_do_not_disturb_each_other_nor_the_state(subject, fifo):
    model = fifo(64)
    alphabet = Alphabet.of(subject(model))
    pairs = Pairs.draw(alphabet, 3, 5, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 5 for row in pairs.keys.tolist())
    state = read_on(model, pairs.tokens, model.init_state(3), piece=3)
    before = state.held.clone()
    answers = ask(model, state, pairs.keys, pairs.values, alphabet)
    assert answers.accuracy == 1.0
    assert torch.equal(state.held, before)
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(ask(model, state, pairs.keys[:, order], pairs.values[:, order], alphabet).bits, answers.bits[:, order])


def test_keys_and_values_are_not_met_in_between(subject, fifo):
    made = subject(fifo(8))
    alphabet = Alphabet.of(made)
    used = set(alphabet.keys.tolist()) | set(alphabet.values.tolist())
    assert len(used) == len(alphabet.keys) + len(alphabet.values)
    between = alphabet.filler(made).text(50_000)
    assert not used & set(between.tolist())
    assert len(set(between.tolist())) > 4
    without_text = alphabet.filler(subject(fifo(8), with_text=False))
    assert not used & set(without_text.text(1000).tolist())


def test_text_goes_round_and_is_the_same_however_it_is_cut(subject, fifo):
    made = subject(fifo(8))
    whole = made.text(50_000, start=3)
    assert torch.equal(torch.cat([made.text(30_000, start=3), made.text(20_000, start=30_003)]), whole)
    assert torch.equal(whole[20_000:40_000], whole[:20_000])


def test_surprisal_equals_one_by_one(subject, fifo):
    model, made = fifo(9), subject(fifo(9))
    tokens = torch.stack([made.text(700), made.text(700, start=1000)])
    nats, state = surprisal(model, tokens, model.init_state(2))
    expected, one = [], model.init_state(2)
    for t in range(699):
        logits, one = model.step(tokens[:, t], one)
        expected.append(-logits.log_softmax(-1).gather(1, tokens[:, t + 1, None])[:, 0].double())
    torch.testing.assert_close(nats, torch.stack(expected, dim=1))
    assert torch.equal(state.held, model.advance(tokens[:, 699:], one).held)


def test_reach_stops_at_the_first_failure():
    assert reach([0, 16, 64], [1.0, 0.4, 1.0], 0.25) == 0
    assert reach([0, 16, 64], [1.0, 0.7, 0.63], 0.25) == 64
    assert reach([0, 16], [0.3, 1.0], 0.25) is None
    assert score(0.25, 0.25) == 0
    assert score(1.0, 0.25) == 1


def test_a_model_that_reads_so_far_only_is_asked_so_far(subject, fifo):
    found = RecallProbe(**SMALL, loads=(1, 8)).run(subject(fifo(4096), longest=80))
    assert found["distances"] == [0, 16, 64]
    assert [len([a for a in row if a is not None]) for row in found["accuracy"]] == [3, 2]


def test_parts_that_are_kept_are_not_measured_again(subject, fifo):
    probe, told = RecallProbe(**SMALL, loads=(1, 2)), {}
    whole = probe.run(subject(fifo(64)), done=told.__setitem__)
    assert list(told) == ["load=1", "load=2"]

    class Silent(fifo):
        def advance(self, tokens, state):
            raise AssertionError("it was read again")

    assert probe.run(subject(Silent(64)), kept=told) == whole
    again: dict = {}
    probe.run(subject(fifo(64)), kept={"load=1": told["load=1"]}, done=again.__setitem__)
    assert again == {"load=2": told["load=2"]}


def test_what_is_missing_is_said(subject, fifo):
    with pytest.raises(DataError, match="text needs a text to read"):
        find_probe("text").run(subject(fifo(8), with_text=False))
    with pytest.raises(DataError, match="slots needs a model with slots"):
        find_probe("slots").run(subject(fifo(8)))

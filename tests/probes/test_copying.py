"""A queue of n tokens saves all of a passage's surprise while it still holds it, and nothing afterwards."""

import math

import pytest

from memseq.probes.copying import CopyingProbe

V = 96


@pytest.mark.parametrize("with_text", [True, False])
def test_a_queue_gains_up_to_its_length(subject, fifo, with_text):
    found = CopyingProbe(length=256, samples=4, lengths=(8, 16), distances=(0, 16, 64)).run(subject(fifo(41), with_text=with_text))[
        "random"
    ]
    for m, row in zip(found["lengths"], found["gain"], strict=True):
        for distance, gain in zip(found["distances"], row, strict=True):
            # token i of the second reading looks for token i of the first, m + d tokens before it
            held = m + distance + 1 <= 41
            assert gain == pytest.approx(math.log2(V) if held else 0.0, abs=1e-6)


def test_no_memory_gains_nothing(subject, leaky):
    found = CopyingProbe(length=64, samples=3, lengths=(8,)).run(subject(leaky(0.9)))
    assert found["random"]["gain"] == [[0.0, 0.0]]
    assert found["text"]["gain"] == [[0.0, 0.0]]


def test_what_is_saved_is_said(subject, fifo):
    says = CopyingProbe(length=64, samples=4, lengths=(8,)).run(subject(fifo(41)))["says"]
    assert [row["question"] for row in says] == [
        "What does it save to have read a passage of text before?",
        "What does it save to have read random tokens before?",
    ]
    assert "6.58 of" in says[1]["answer"]

"""Parity and delayed match, counted by hand."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.tasks.bits import BLANK, MatchTask, ParityTask
from memseq.tasks.induction import InductionTask
from memseq.tasks.selective_copy import SelectiveCopyTask


def test_the_labels_are_the_parity_and_the_match_of_the_last_bits():
    for row, label in zip(*_last(ParityTask(n_bits=5)), strict=True):
        assert label == sum(row[-5:]) % 2
    for row, label in zip(*_last(MatchTask(n_bits=5)), strict=True):
        assert label == (row[-5] == row[-1])


def _last(task):
    batch = task.sample(300, 0)
    return batch.inputs.tolist(), batch.labels[:, -1].tolist()


def test_rows_begin_anywhere_and_hold_enough_bits_for_every_head():
    task = ParityTask(n_bits=3, most=6)
    inputs = task.sample(4000, 0).inputs
    n_read = (inputs != BLANK).sum(1)
    assert (int(n_read.min()), int(n_read.max())) == (8, 25)  # N + 2 to 4 N + 1
    assert bool(((inputs == BLANK).long().diff(dim=1) <= 0).all())  # blanks first, and nowhere else
    heads = task.heads(inputs, [2, 3, 6])
    assert torch.equal(heads[:, 1], inputs[:, -3:].sum(1) % 2)
    assert torch.equal(heads[:, 2], inputs[:, -6:].sum(1) % 2)


def test_a_head_that_the_stream_is_too_short_for_is_refused():
    task = ParityTask(n_bits=3, most=6)
    with pytest.raises(ConfigError, match=r"N=7 .* use 2 to 6"):
        task.heads(task.sample(2, 0).inputs, [7])
    with pytest.raises(ConfigError, match="most=2 is less than n_bits=3"):
        ParityTask(n_bits=3, most=2)


def test_matches_are_as_likely_as_not():
    labels = MatchTask(n_bits=7).sample(20_000, 0).labels[:, -1]
    assert abs(float(labels.double().mean()) - 0.5) < 0.02


def test_symbols_to_copy_lie_anywhere_and_noise_is_one_token():
    task = SelectiveCopyTask(n_tokens=32, n_source=4)
    batch = task.sample(2000, 0)
    is_symbol = batch.inputs[:, :32] < task.n_symbols
    assert bool((is_symbol.sum(1) == 4).all())
    share = is_symbol.double().mean(0)
    assert float((share - 4 / 32).abs().max()) < 0.03
    plain = SelectiveCopyTask(n_tokens=32, n_source=4, scattered=False).sample(10, 0)
    assert bool((plain.inputs[:, :4] < task.n_symbols).all())


def test_the_marker_stands_twice_and_anything_may_follow_it():
    task = InductionTask(n_tokens=9)
    batch = task.sample(3000, 0)
    markers = batch.inputs == task.n_symbols
    assert bool((markers.sum(1) == 2).all())
    assert bool(markers[:, -1].all())
    assert set(markers[:, :-1].int().argmax(1).tolist()) == set(range(7))

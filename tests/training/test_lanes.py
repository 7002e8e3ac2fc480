"""Lanes read every token of every document once an epoch, in order, and go on exactly where they stopped."""

import json
from itertools import islice

import numpy as np
import pytest
import torch

from memseq.errors import CheckpointError, ConfigError, DataError
from memseq.training.lanes import EachOnce, Lanes, StreamLanes, TokenDocuments


def documents(*lengths: int) -> TokenDocuments:
    """Document d holds 1000 d + 0, 1000 d + 1, ...: a token says where it is from."""
    return TokenDocuments([1000 * d + np.arange(n) for d, n in enumerate(lengths)])


def rows(segments, row):
    """What one lane read: a list of (token, target) a document, by the resets."""
    found = []
    for segment in segments:
        if segment.reset[row]:
            found.append([])
        scored = segment.targets[row] != -100
        found[-1] += list(zip(segment.tokens[row][scored].tolist(), segment.targets[row][scored].tolist(), strict=True))
    return found


def test_a_document_is_read_whole_in_order_and_predicts_its_next_token():
    lanes = Lanes(documents(10, 3, 7, 2), batch_size=1, segment_length=4, seed=3)
    read = rows(islice(lanes, 3 + 1 + 2 + 1), 0)
    assert sorted(len(d) for d in read) == [1, 2, 6, 9]
    for document in read:
        first = document[0][0] // 1000 * 1000
        assert document == [(first + i, first + i + 1) for i in range(len(document))]


def test_the_tail_of_the_last_segment_is_not_scored_and_the_next_segment_resets():
    lanes = Lanes(documents(6, 6), batch_size=1, segment_length=4, seed=0)
    first, second, third = islice(lanes, 3)
    assert first.reset.tolist() == [True]
    assert second.reset.tolist() == [False]
    assert third.reset.tolist() == [True]
    assert (second.targets[0] == -100).tolist() == [False, True, True, True]
    assert second.tokens[0, 0] == first.targets[0, -1]  # the last target is the next segment's first token


@pytest.mark.parametrize("lengths", [(9, 9, 9, 9), (5, 30, 2, 11, 4, 8)], ids=str)
def test_every_epoch_reads_every_document_once_in_another_order(lengths):
    lanes = Lanes(documents(*lengths), batch_size=2, segment_length=64, seed=1)
    epochs = [sorted(rows_of(lanes, len(lengths) // 2)) for _ in range(6)]
    assert all(epoch == list(range(len(lengths))) for epoch in epochs)
    orders = {tuple(rows_of(Lanes(documents(*lengths), batch_size=1, segment_length=64, seed=s), len(lengths))) for s in range(8)}
    assert len(orders) > 1


def rows_of(lanes, steps):
    return [int(token) // 1000 for segment in islice(lanes, steps) for token in segment.tokens[:, 0]]


def test_the_seed_decides():
    def read(seed):
        return torch.stack([s.tokens for s in islice(Lanes(documents(*range(5, 25)), batch_size=3, segment_length=4, seed=seed), 20)])

    assert torch.equal(read(1), read(1))
    assert not torch.equal(read(1), read(2))


@pytest.mark.parametrize("steps", [0, 1, 7, 40])
def test_a_saved_position_goes_on_bit_for_bit(steps):
    def new():
        return Lanes(documents(*range(2, 40)), batch_size=3, segment_length=5, seed=4)

    lanes, resumed = new(), new()
    for _ in range(steps):
        next(lanes)
    resumed.load_state_dict(json.loads(json.dumps(lanes.state_dict())))
    for _ in range(60):
        for ours, theirs in zip(next(resumed), next(lanes), strict=True):
            assert torch.equal(ours, theirs)


def test_a_position_opens_documents_where_they_stopped_and_not_at_their_beginning():
    class Watched(TokenDocuments):
        CHUNK = 8
        starts = []

        def chunks(self, document, start=0):
            self.starts.append(start)
            return super().chunks(document, start)

        def at_least(self, count):
            return self

    lanes = Lanes(Watched([np.arange(1000)]), batch_size=1, segment_length=10)
    for _ in range(50):
        next(lanes)
    resumed = Lanes(Watched([np.arange(1000)]), batch_size=1, segment_length=10)
    Watched.starts.clear()
    resumed.load_state_dict(lanes.state_dict())
    assert Watched.starts == [496]
    assert torch.equal(next(resumed).tokens, next(lanes).tokens)


def test_two_processes_read_what_one_reads_with_twice_the_lanes():
    text = documents(*range(3, 33))
    whole = Lanes(text, batch_size=4, segment_length=6, seed=5)
    parts = [Lanes(text, batch_size=2, segment_length=6, seed=5, rank=r, world=2) for r in range(2)]
    for _ in range(50):
        for all_rows, *halves in zip(next(whole), *(next(part) for part in parts), strict=True):
            assert torch.equal(all_rows, torch.cat(halves))


def test_few_documents_are_cut_so_that_every_lane_has_one():
    lanes = Lanes(TokenDocuments([np.arange(1000)]), batch_size=8, segment_length=16)
    first = next(lanes)
    assert len(set(first.tokens[:, 0].tolist())) == 8
    seen = set(first.tokens.flatten().tolist()).union(*(set(s.tokens.flatten().tolist()) for s in islice(lanes, 7)))
    assert len(seen) >= 1000 - 8  # the last token of a part is only ever a target


def test_nothing_to_predict_is_an_error_and_not_an_endless_search():
    with pytest.raises(DataError, match="no document holds two tokens, so there is nothing to predict"):
        next(Lanes(TokenDocuments([[1], [2], []]), batch_size=2, segment_length=4))
    with pytest.raises(DataError, match="5 tokens are too few for 4 lanes"):
        Lanes(TokenDocuments([np.arange(5)]), batch_size=4, segment_length=4)
    with pytest.raises(DataError, match="there are no documents"):
        TokenDocuments([])


def test_a_position_of_another_run_is_refused():
    state = Lanes(documents(9, 9), batch_size=2, segment_length=4).state_dict()
    with pytest.raises(CheckpointError, match="of segment_length=4 and this run has segment_length=5"):
        Lanes(documents(9, 9), batch_size=2, segment_length=5).load_state_dict(state)
    with pytest.raises(CheckpointError, match="2 documents shuffled with seed 0, this run reads 3 with seed 0"):
        Lanes(documents(9, 9, 9), batch_size=2, segment_length=4).load_state_dict(state)


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="segment_length=0 must be at least 1"):
        Lanes(documents(9), batch_size=1, segment_length=0)
    with pytest.raises(ConfigError, match="rank=2 must lie between 0 and world - 1 = 1"):
        Lanes(documents(9), batch_size=1, segment_length=4, rank=2, world=2)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("world", [1, 2])
def test_evaluation_reads_every_document_once_in_order(batch_size, world):
    lengths = (10, 1, 3, 0, 7, 2)
    found = {}
    for rank in range(world):
        held_out = EachOnce(documents(*lengths), batch_size=batch_size, segment_length=4, rank=rank, world=world)
        for _ in range(2):  # each iteration starts anew
            segments = list(held_out)
            for row in range(batch_size):
                for document in rows([s for s in segments if s.reset[row] or (s.targets[row] != -100).any()], row):
                    found[document[0][0] // 1000] = document
    assert {d: len(read) for d, read in found.items()} == {d: n - 1 for d, n in enumerate(lengths) if n > 1}
    assert all(read == [(1000 * d + i, 1000 * d + i + 1) for i in range(len(read))] for d, read in found.items())


def test_a_short_evaluation_reads_the_beginning():
    whole = list(EachOnce(documents(50, 50), batch_size=2, segment_length=4))
    short = list(EachOnce(documents(50, 50), batch_size=2, segment_length=4, segments=3))
    assert len(short) == 3
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(short, whole, strict=False))


class Counting:
    """A stream of documents 0, 1, 2, ... that repeats after `total`."""

    def __init__(self, total=7):
        self.total, self.number = total, 0

    def take(self):
        self.number += 1
        return self.number - 1, self.reopen(self.number - 1, 0)

    def reopen(self, place, start):
        tokens = 1000 * (place % self.total) + np.arange(3 + 5 * (place % self.total))
        return iter([(at, tokens[at : at + 4]) for at in range(start, len(tokens), 4)])

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


def test_a_stream_gives_the_next_document_to_the_next_free_lane_and_resumes():
    lanes = StreamLanes(Counting(), batch_size=3, segment_length=6)
    assert [int(t) // 1000 for t in next(lanes).tokens[:, 0]] == [0, 1, 2]
    for _ in range(9):
        next(lanes)
    resumed = StreamLanes(Counting(), batch_size=3, segment_length=6)
    resumed.load_state_dict(json.loads(json.dumps(lanes.state_dict())))
    for _ in range(40):
        for ours, theirs in zip(next(resumed), next(lanes), strict=True):
            assert torch.equal(ours, theirs)

"""Recall: every label is what was shown, found again token by token."""

import pytest
import torch

from memseq.tasks.recall import OverwrittenRecallTask, RecallTask
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize("task", [RecallTask(), RecallTask(n_segments=64), RecallTask(n_noise=0, n_shown=2, segment_length=3)])
def test_labels_are_the_shown_symbols_and_stand_at_the_questions(task):
    batch = task.sample(40, 0)
    L, m = task.segment_length, task.n_shown
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        assert inputs.count(task.show) == 1
        shown = inputs[1 + inputs.index(task.show) :][:m]
        for i, (token, label) in enumerate(zip(inputs, labels, strict=True)):
            if token > task.show:
                assert i // L == task.n_segments - 1
                assert label == shown[token - task.show - 1]
                assert i - (1 + inputs.index(task.show) + token - task.show - 1) == task.distance
            else:
                assert label == IGNORE
        assert sum(label != IGNORE for label in labels) == m


def test_noise_has_its_own_kinds_or_the_symbols():
    own, mixed = RecallTask().sample(200, 0).inputs, RecallTask(n_noise=0).sample(200, 0).inputs
    assert set(own[:, 12:36].unique().tolist()) == set(range(16, 32))
    assert set(mixed[:, 12:36].unique().tolist()) == set(range(16))


def test_the_length_is_free_of_the_vocabulary():
    assert {RecallTask(n_segments=s).vocab_size for s in (2, 4, 8, 64)} == {37}


def test_the_last_segment_tells_nothing():
    """No token of the query segment, and no other label, says anything of a label: chi-square of independence."""
    task = RecallTask(n_symbols=4, n_noise=4)
    batch = task.sample(20_000, 0)
    labels = batch.labels[:, -12:-8]
    others = torch.cat([batch.inputs[:, 5:], labels], dim=1)
    for j in range(4):
        for k in range(others.shape[1]):
            if k == others.shape[1] - 4 + j:
                continue
            counts = torch.zeros(4, task.vocab_size, dtype=torch.float64)
            counts.index_put_((labels[:, j], others[:, k]), torch.tensor(1.0, dtype=torch.float64), accumulate=True)
            counts = counts[:, counts.sum(0) > 0]
            expected = counts.sum(0) * counts.sum(1, keepdim=True) / counts.sum()
            assert float(((counts - expected) ** 2 / expected).sum()) < 35, (j, k)  # 9 degrees of freedom: p < 1e-4


def bindings(task, inputs):
    """What each key was given, in order: (position, key, symbol)."""
    first = task.n_symbols + task.n_noise
    return [(i, token - first, inputs[i + 1]) for i, token in enumerate(inputs) if first <= token < first + task.n_keys]


@pytest.mark.parametrize(
    "task", [OverwrittenRecallTask(), OverwrittenRecallTask(n_segments=9, n_writes=4), OverwrittenRecallTask(n_segments=30, n_writes=1)]
)
def test_the_answer_is_the_latest_binding(task):
    batch = task.sample(40, 0)
    L, S = task.segment_length, task.n_segments
    ask = task.n_symbols + task.n_noise + task.n_keys
    for b, (inputs, labels) in enumerate(zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True)):
        bound = bindings(task, inputs)
        for s in range(S):
            keys = [k for i, k, _ in bound if i // L == s]
            assert len(keys) == len(set(keys)) == (task.n_keys if s == 0 else 0 if s == S - 1 else task.n_writes)
        for i, (token, label) in enumerate(zip(inputs, labels, strict=True)):
            if token < ask:
                assert label == IGNORE
                continue
            mine = [(at, symbol) for at, k, symbol in bound if k == token - ask]
            assert i // L == S - 1
            assert label == mine[-1][1]
            assert int(batch.slices["age"][b, i]) == S - 1 - mine[-1][0] // L
            assert int(batch.slices["writes"][b, i]) == len(mine)


def test_keeping_the_first_binding_does_not_do():
    task = OverwrittenRecallTask(n_segments=12)
    batch = task.sample(2000, 0)
    scores = task.metric(task.stale(batch.inputs), batch)
    assert scores["accuracy/writes=1"] == 1.0
    rewritten = [value for name, value in scores.items() if name.startswith("accuracy/writes=") and name != "accuracy/writes=1"]
    assert len(rewritten) > 5
    assert scores["accuracy"] < 0.1
    assert abs(scores["accuracy/writes=6"] - 1 / 16) < 0.02

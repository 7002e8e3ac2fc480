"""MQAR: positions, values and the law of the slots, found again token by token."""

import pytest
import torch

from memseq.tasks.mqar import MQARTask
from memseq.tasks.task import IGNORE

TASKS = [
    MQARTask(),
    MQARTask(n_pairs=16, power=1.0),
    MQARTask(n_pairs=8, vocabulary=40, random_fill=True),
    MQARTask(n_pairs=3, vocabulary=8, n_tokens=12, random_fill=True),
    MQARTask(vocabulary=8192, n_tokens=512, n_pairs=128),
]


@pytest.mark.parametrize("task", TASKS)
def test_every_query_asks_for_a_pair_that_was_shown(task):
    batch = task.sample(50, 0)
    n, V = task.n_pairs, task.vocabulary
    for b, (inputs, labels) in enumerate(zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True)):
        pairs = dict(zip(inputs[0 : 2 * n : 2], inputs[1 : 2 * n : 2], strict=True))
        assert len(pairs) == n == len(set(pairs.values()))
        assert all(1 <= key < V // 2 for key in pairs)
        assert all(V // 2 <= value < V for value in pairs.values())
        asked = [i for i, label in enumerate(labels) if label != IGNORE]
        assert len(asked) == n
        assert sorted(inputs[i] for i in asked) == sorted(pairs)
        for i in asked:
            assert i >= 2 * n
            assert i % 2 == 0
            assert labels[i] == pairs[inputs[i]]
            gap = i - inputs.index(inputs[i])
            assert int(batch.slices["gap"][b, i]) <= gap < 2 * int(batch.slices["gap"][b, i])
        rest = [token for i, token in enumerate(inputs) if i >= 2 * n and i not in asked]
        if task.random_fill:
            assert not set(rest) & set(pairs)
        else:
            assert set(rest) <= {0}


def test_noise_is_uniform_over_all_but_the_keys():
    task = MQARTask(n_pairs=2, vocabulary=10, n_tokens=64, random_fill=True)
    batch = task.sample(4000, 0)
    same = batch.inputs[:, [0, 2]].sort(1).values.eq(torch.tensor([1, 3])).all(1)
    noise = batch.inputs[same, 4:][batch.labels[same, 4:] == IGNORE]
    counts = noise.bincount(minlength=10).double()
    assert counts[[1, 3]].tolist() == [0, 0]
    kept = counts[[0, 2, 4, 5, 6, 7, 8, 9]]
    assert float(((kept - kept.mean()) ** 2 / kept.mean()).sum()) < 26.1  # chi-square, 7 degrees of freedom, 0.05 %


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_slots_follow_the_power_law(power):
    """One pair: its slot g has the probability a (g + 1)^(a - 1), normalised."""
    task = MQARTask(n_pairs=1, n_tokens=22, power=power)
    batch = task.sample(20_000, 0)
    slots = ((batch.labels != IGNORE).int().argmax(1) - 2) // 2
    p = torch.arange(1, 11, dtype=torch.float64) ** (power - 1)
    expected = 20_000 * p / p.sum()
    observed = slots.bincount(minlength=10).double()
    assert float(((observed - expected) ** 2 / expected).sum()) < 27.9  # chi-square, 9 degrees of freedom, 0.1 %


def test_two_players_frame_the_score():
    task = MQARTask()
    assert task.chance == 1 / 128
    assert task.among_shown == 1 / 4
    batch = task.sample(3000, 0)
    first = batch.inputs[:, 1:2].expand_as(batch.inputs)  # says one of the shown values, whatever is asked
    assert task.metric(first, batch)["accuracy"] == task.among_shown


def test_a_context_read_twice_is_the_same_context():
    once, twice = MQARTask(n_pairs=6, n_tokens=40), MQARTask(n_pairs=6, n_tokens=52, readings=2)
    a, b = once.sample(20, 3), twice.sample(20, 3)
    assert torch.equal(b.inputs[:, :12], a.inputs[:, :12])
    assert torch.equal(b.inputs[:, 12:], a.inputs)  # the same draw, one showing of the pairs before it
    assert torch.equal(b.labels[:, 12:], a.labels)
    assert bool((b.labels[:, :24] == IGNORE).all())

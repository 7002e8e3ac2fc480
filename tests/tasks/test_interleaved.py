"""Interleaved recall: topics, keys and values found again token by token."""

from collections import Counter

import pytest

from memseq.tasks.interleaved import InterleavedRecallTask
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize(
    "task",
    [InterleavedRecallTask(), InterleavedRecallTask(n_topics=1, topic_tokens=4), InterleavedRecallTask(n_topics=3, n_pairs=2, n_asked=5)],
    ids=str,
)
def test_every_question_asks_for_a_pair_of_its_topic(task):
    batch = task.sample(60, 0)
    end, topics = 3 * task.n_topics * task.n_pairs, task.topic_tokens or task.n_topics
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        told = {(inputs[i], inputs[i + 1]): inputs[i + 2] for i in range(0, end, 3)}
        assert len(told) == task.n_topics * task.n_pairs  # a key is told once under a topic
        assert set(Counter(topic for topic, _ in told).values()) == {task.n_pairs}
        for (topic, key), value in told.items():
            assert 0 <= topic < topics <= key < topics + task.n_keys <= value < task.vocab_size
        asked = [(inputs[i], inputs[i + 1]) for i in range(end, len(inputs), 2)]
        assert len(set(asked)) == task.n_asked
        assert labels == end * [IGNORE] + [label for pair in asked for label in (IGNORE, told[pair])]


def test_a_key_alone_does_not_tell_its_value():
    task = InterleavedRecallTask()
    batch = task.sample(500, 0)
    several = 0
    for inputs in batch.inputs[:, :96].tolist():
        values = {}
        for i in range(0, 96, 3):
            values.setdefault(inputs[i + 1], set()).add(inputs[i + 2])
        several += sum(len(v) > 1 for v in values.values())
    assert several / 500 > 8  # of 16 keys

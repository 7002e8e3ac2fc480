"""Delayed meaning: phrases and meanings found again token by token, and what must be read to the right."""

from collections import Counter

import pytest

from memseq.tasks.delayed_meaning import DelayedMeaningTask
from memseq.tasks.task import IGNORE

FEW = DelayedMeaningTask(n_names=5, n_phrases=2, n_asked=3, n_between=4, n_kinds=6, n_meanings=2)
ALONE = DelayedMeaningTask(n_names=3, n_phrases=3, n_asked=1)


@pytest.mark.parametrize("task", [DelayedMeaningTask(), FEW, ALONE], ids=str)
def test_a_name_means_what_its_phrase_ends_with(task):
    batch = task.sample(60, 0)
    story, nothing = task.segment_length, task.n_kinds + task.n_meanings
    for inputs, labels, later in zip(batch.inputs.tolist(), batch.labels.tolist(), batch.slices["later"].tolist(), strict=True):
        meaning, place, phrase = {}, {}, []
        for i, token in enumerate(inputs[:story]):
            if token < task.n_kinds:
                assert token not in place  # a name comes once
                place[token] = i
                phrase.append(token)
            else:
                assert phrase  # no phrase is empty
                assert token < nothing
                assert token not in [m for m, _ in meaning.values()]  # nor does a meaning come twice
                meaning |= dict.fromkeys(phrase, (token, i))
                phrase = []
        assert not phrase  # the last phrase has its meaning too
        assert len(meaning) == task.n_names
        assert inputs[story : story + task.n_between] == task.n_between * [nothing]
        asked = [token - nothing - 1 for token in inputs[-task.n_asked :]]
        assert len(set(asked)) == task.n_asked
        assert labels == (task.length - task.n_asked) * [IGNORE] + [meaning[name][0] for name in asked]
        assert later[-task.n_asked :] == [meaning[name][1] - place[name] for name in asked]


def test_what_stands_to_the_left_of_a_name_tells_nothing_of_its_meaning():
    """Two stories that are equal up to a name and beyond it to its phrase's end differ in what it means: meanings are drawn apart."""
    task = DelayedMeaningTask(n_names=2, n_phrases=1, n_asked=1, n_kinds=2, n_meanings=4)
    batch = task.sample(4000, 0)
    counts = Counter(zip(batch.inputs[:, 0].tolist(), batch.inputs[:, -1].tolist(), batch.labels[:, -1].tolist(), strict=True))
    assert len(counts) == 2 * 2 * 4
    assert min(counts.values()) > 190  # of 250: five standard deviations are 77, a dependence would be far more


def test_borders_of_phrases_are_uniform():
    task = DelayedMeaningTask(n_names=4, n_phrases=2, n_asked=1)
    batch = task.sample(3000, 0)
    first = (batch.inputs[:, : task.segment_length] >= task.n_kinds).int().argmax(1)
    counts = Counter(first.tolist())
    assert set(counts) == {1, 2, 3}
    assert max(counts.values()) - min(counts.values()) < 200  # of 1,000 each

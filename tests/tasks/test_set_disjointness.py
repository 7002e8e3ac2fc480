"""Set disjointness: the lists share one element and no more, wherever it may stand."""

import pytest

from memseq.tasks.set_disjointness import ANSWER, FIRST, SECOND, SetDisjointnessTask
from memseq.tasks.task import IGNORE

SIZES = [(4, 16, 1), (16, 4, 1), (1, 1, 1), (5, 5, 2), (3, 60, 3)]


@pytest.mark.parametrize(("n", "m", "readings"), SIZES, ids=str)
def test_the_lists_share_one_element(n, m, readings):
    task = SetDisjointnessTask(n_first=n, n_second=m, readings=readings)
    batch = task.sample(100, 0)
    for inputs, labels, distance in zip(batch.inputs.tolist(), batch.labels.tolist(), batch.slices["distance"].tolist(), strict=True):
        assert inputs[-1] == ANSWER
        assert inputs[:-1] == readings * inputs[: n + m + 2]
        first, second = inputs[1 : n + 1], inputs[n + 2 : n + m + 2]
        assert (inputs[0], inputs[n + 1]) == (FIRST, SECOND)
        assert all(4 <= element < task.vocabulary for element in first + second)
        assert (len(set(first)), len(set(second))) == (n, m)
        assert set(first) & set(second) == {labels[-1]}
        assert labels[:-1] == [IGNORE] * (len(labels) - 1)
        between = n + 2 + second.index(labels[-1]) - 1 - first.index(labels[-1])
        assert distance <= between < 2 * distance


def test_every_place_and_every_element_is_as_likely():
    task = SetDisjointnessTask(n_first=5, n_second=8, vocabulary=24)
    batch = task.sample(20_000, 0)
    common = batch.labels[:, -1]
    for start, n in ((1, 5), (7, 8)):
        counts = (batch.inputs[:, start : start + n] == common[:, None]).sum(0).double()
        assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 24.3  # chi-square, 7 degrees of freedom, 0.1 %
    counts = common.bincount(minlength=24)[4:].double()
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 43.8  # 19 degrees of freedom, 0.1 %


def test_two_players_frame_the_score():
    task = SetDisjointnessTask(n_first=16, n_second=4, vocabulary=64)
    assert task.chance == 1 / 60
    assert task.among_shorter == 1 / 4
    assert task.prefix_length == task.length - 1 == 22
    batch = task.sample(4000, 0)
    guess = batch.inputs[:, 18:19].expand_as(batch.inputs)  # the first element of the shorter list
    assert abs(task.metric(guess, batch)["accuracy"] - task.among_shorter) < 0.03

"""Copy and reverse: what is said is the source, and nothing after [go] shows it."""

import pytest
import torch

from memseq.tasks.copy import CopyTask, ReverseTask
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize("task", [CopyTask(), CopyTask(n_source=5, repeats=3), ReverseTask(), ReverseTask(n_source=7, repeats=2)])
def test_labels_are_the_source_said_again(task):
    batch = task.sample(30, 0)
    n = task.n_source
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        source = inputs[:n]
        assert all(symbol < task.n_symbols for symbol in source)
        assert inputs[n:] == [task.n_symbols] + [task.n_symbols + 1] * (n * task.repeats - 1)
        said = source[::-1] if isinstance(task, ReverseTask) else source
        assert labels == [IGNORE] * n + said * task.repeats


def test_the_published_size():
    batch = CopyTask().sample(1, 0)
    assert int((batch.labels != IGNORE).sum()) == 48
    assert batch.inputs.shape == (1, 72)


def test_symbols_are_uniform():
    counts = CopyTask().sample(2000, 0).inputs[:, :24].flatten().bincount().double()
    assert float(((counts - 4800) ** 2 / 4800).sum()) < 27.9  # chi-square, 9 degrees of freedom, 0.1 %
    assert len(counts) == 10
    assert torch.equal(ReverseTask().sample(4, 0).inputs[:, :24], CopyTask().sample(4, 0).inputs[:, :24])

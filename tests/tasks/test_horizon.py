"""Recall with a horizon: bindings followed pair by pair."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.tasks.horizon import HorizonRecallTask
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize(
    "task", [HorizonRecallTask(n_tokens=96, horizon=16), HorizonRecallTask(n_tokens=50, n_keys=4, n_values=3)], ids=str
)
def test_what_is_asked_was_shown_within_the_horizon_and_the_answer_is_the_latest(task):
    batch = task.sample(40, 0)
    asked = 0
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        latest, shown = {}, {}
        for i in range(0, len(inputs), 2):
            key, value = inputs[i : i + 2]
            assert 0 <= key < task.n_keys <= value < task.vocab_size
            assert labels[i + 1] == IGNORE
            if labels[i] != IGNORE:
                asked += 1
                assert labels[i] == value == latest[key]
                assert i - shown[key] <= task.horizon
            latest[key], shown[key] = value, i
    assert 0.45 < asked / (40 * task.n_tokens / 2) < 0.55


def test_half_of_a_long_stream_is_new_and_gives_old_keys_new_values():
    inputs = HorizonRecallTask(n_tokens=4096, n_keys=128).sample(1, 0).inputs[0].tolist()
    values = {}
    for key, value in zip(inputs[::2], inputs[1::2], strict=True):
        values.setdefault(key, []).append(value)
    assert len(values) == 128
    assert sum(len(set(seen)) for seen in values.values()) / 128 > 5


def test_questions_are_as_far_back_at_any_place_beyond_the_horizon():
    task, backs = HorizonRecallTask(n_tokens=256, horizon=32), {64: [], 256: []}
    for inputs, labels in zip(*(t.tolist() for t in task.sample(300, 0)[:2]), strict=True):
        for end in backs:
            for i in range(end - 32, end, 2):
                if labels[i] != IGNORE:
                    backs[end].append(i - max(j for j in range(0, i, 2) if inputs[j] == inputs[i]))
    near, far = (torch.tensor(b, dtype=torch.float64) for b in backs.values())
    assert abs(float(near.mean() - far.mean())) < 4 * float((near.var() / len(near) + far.var() / len(far)).sqrt())


@pytest.mark.parametrize("settings", [{"n_tokens": 5}, {"n_tokens": 2}, {"horizon": 3}, {"n_keys": 0}, {"n_values": 1}], ids=str)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        HorizonRecallTask(**settings)

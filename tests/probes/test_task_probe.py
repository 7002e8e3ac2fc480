"""Tasks as probes, and the list of probes."""

import pytest
import torch

from memseq.errors import ConfigError, DataError
from memseq.probes import PROBES, find_probe, probe_names
from memseq.probes.task import SWEEPS, TaskProbe, ask_task
from memseq.tasks import TASKS, make_task
from memseq.tasks.recall import RecallTask


def test_a_model_that_knows_nothing_is_at_chance(subject, leaky):
    probe = TaskProbe(task="recall", sweep={"n_shown": (1, 2), "n_segments": (2, 4)}, length=64, samples=64)
    found = probe.run(subject(leaky(0.5)))
    assert found["axes"] == {"n_shown": [1, 2], "n_segments": [2, 4]}
    assert [len(row) for row in found["accuracy"]] == [2, 2]
    assert all(abs(a - 1 / 16) < 0.1 for row in found["accuracy"] for a in row)


def test_the_score_is_the_task_s_own(subject, fifo):
    task, model = RecallTask(n_segments=3, segment_length=6, n_shown=2), fifo(30)
    batch = task.sample(64, 5, "test")
    logits, _ = model(batch.inputs, model.init_state(64))
    assert ask_task(model, task, samples=64, seed=5, piece=4)["accuracy"] == task.metric(logits, batch)["accuracy"]


def test_what_is_set_is_not_swept(subject, leaky):
    found = TaskProbe(task="recall", settings={"n_noise": 0, "n_shown": 3}, length=96).run(subject(leaky(0.5)))
    assert list(found["axes"]) == ["n_segments"]
    assert max(found["axes"]["n_segments"]) == 8  # 96 tokens


def test_a_task_of_more_tokens_is_refused(subject, leaky):
    with pytest.raises(DataError, match="asks with 8192 tokens and known knows 96"):
        TaskProbe(task="mqar", settings={"vocabulary": 8192}).run(subject(leaky(0.5)))


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_name_settings_of_their_tasks(name):
    for setting, values in SWEEPS[name].items():
        for value in values:
            assert getattr(make_task(name, **{setting: value}), setting) == value


def test_every_probe_is_found_and_named():
    for name in PROBES:
        probe = find_probe(name, length=64)
        assert (probe.name, probe.length) == (name, 64)
        assert probe.about[0].islower()
        assert not probe.about.endswith(".")
    assert find_probe("task:mqar").task == "mqar"
    assert set(probe_names()) == set(PROBES) | {f"task:{name}" for name in TASKS}
    with pytest.raises(ConfigError, match="there is no probe 'recal'; did you mean 'recall'"):
        find_probe("recal")
    with pytest.raises(ConfigError, match="did you mean 'task:mqar'"):
        find_probe("task:mqra")


def test_the_subject_s_model_is_left_as_it_was(subject, leaky):
    model = leaky(0.5).train()
    find_probe("retention", length=16, samples=2).run(subject(model))
    assert model.training
    assert torch.is_grad_enabled()

"""The plumbing of the recipe: the task has one right answer, every contender trains and is asked, rows are kept."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import titans
from memseq.recipes.titans import RewrittenTask, contenders, main, run
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize("episodes", [1, 3])
def test_the_answer_is_the_value_shown_last(episodes):
    task = RewrittenTask(episodes=episodes)
    batch = task.sample(20, seed=0)
    asked = batch.labels != IGNORE
    assert batch.inputs.shape == (20, task.length)
    assert asked.sum() == 20 * episodes * task.n_keys
    assert torch.equal(task.oracle(batch.inputs)[asked], batch.labels[asked])
    first = batch.inputs[0, : 2 * task.n_keys : 2].tolist()
    assert sorted(first) == list(range(task.n_keys))
    assert int(batch.inputs.max()) < task.vocab_size


def test_contenders_of_one_question_hold_about_as_much():
    rows = [what for what in contenders() if what.name.startswith("rewritten") or what.name == "episodes: LMM, linear"]
    for what in rows:
        row = run(replace(what, steps=1, batch_size=2, asked=2))
        assert row["state_bytes"] < 1.35 * 16_392
        assert set(row["accuracy"]) == {str(test.episodes) for test in what.test_on}


def test_rows_are_written_as_they_come_and_kept(tmp_path, monkeypatch, capsys):
    quick = [replace(what, steps=1, batch_size=2, asked=4) for what in contenders()[:2]]
    monkeypatch.setattr(titans, "contenders", lambda: quick)
    path = tmp_path / "rows.json"
    for only in ("no momentum", ""):
        main(["--seeds", "0", "--only", only, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["rewritten: LMM, no momentum", "rewritten: LMM"]
    assert capsys.readouterr().out.count("\n") == 2

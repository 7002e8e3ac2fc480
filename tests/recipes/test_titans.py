"""The plumbing of the recipe: the task has one right answer, every contender trains and is asked, rows are kept."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import titans
from memseq.recipes.titans import RewrittenTask, contenders, main, run
from memseq.tasks.task import IGNORE

FEW = {"stages": ((1, 1, 2), (1, 2, 2)), "asked": 2}


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


def test_contenders_hold_about_as_much():
    for what in contenders():
        row = run(replace(what, **FEW))
        assert row["state_bytes"] < 1.35 * 16_392 + 4_352 * what.name.startswith("MAG")  # MAG has a window, of 8 tokens
        assert row["steps"] == 2
        assert set(row["accuracy"]) == {"1", "4", "16"}


def test_rows_are_written_as_they_come_and_kept(tmp_path, monkeypatch, capsys):
    quick = [replace(what, **FEW) for what in contenders()[:2]]
    monkeypatch.setattr(titans, "contenders", lambda: quick)
    path = tmp_path / "rows.json"
    for only in ("no momentum", ""):
        main(["--seeds", "0", "--only", only, "--json", str(path)])
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["rows"]] == ["LMM, no momentum", "LMM"]
    assert result["claims"].keys() == {"LMM"}
    assert capsys.readouterr().out.count("\n") == 2

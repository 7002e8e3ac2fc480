"""The recipes of RMT and of retrofitting: their plumbing on few steps, and what they call a claim."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import retrofit, rmt


def test_every_row_of_recall_trains_and_is_asked(tmp_path, monkeypatch):
    rows = [replace(what, seconds=0.3, times=(1, 2)) for what in rmt.contenders()]
    monkeypatch.setattr(rmt, "contenders", lambda: rows)
    file = tmp_path / "rmt.json"
    rmt.main(["--json", str(file), "--seeds", "1"])
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == [what.name for what in rows]
    for row in result["rows"]:
        assert row["steps"] >= 1
        assert set(row["accuracy"]) == {"4", "8"}
        assert all(0 <= share <= 1 for share in row["accuracy"].values())
    sizes = {row["name"]: row["parameters"] for row in result["rows"]}
    assert sizes["rmt"] - sizes["no memory"] == rmt.SLOTS * rmt.D  # one backbone, and the initial memory
    rmt.main(["--json", str(file), "--seeds", "1"])  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


def test_the_claim_of_recall_is_of_the_worst_seed():
    rows = [{"name": "rmt, noise 1", "seed": i, "accuracy": {"256": share}} for i, share in enumerate((0.99, 0.96, 0.94))]
    assert rmt.claims(rows)["256 segments"] == {"target": 0.95, "reached": 0.94, "seeds": 3, "ok": False}
    assert rmt.claims(rows[:2])["256 segments"]["ok"]


def test_the_questions_of_training_are_not_those_that_are_scored():
    train = rmt.question(4).sample(64, seed=4)
    test = rmt.question(4).sample(64, seed=4, split="test")
    assert not torch.equal(train.inputs, test.inputs)


def test_a_retrofit_is_compared_with_the_model_alone():
    row = {"seed": 0, "inside": 10.0, "beyond": 8.0}
    rows = [row | {"name": "alone"}, row | {"name": "rmt", "inside": 10.04, "beyond": 7.6}, row | {"name": "armt", "inside": 10.2}]
    found = retrofit.claims(rows)
    assert found["rmt, seed 0"]["ok"]
    assert found["rmt, seed 0"]["beyond, of alone"] == 0.95
    assert not found["armt, seed 0"]["ok"]


@pytest.mark.slow
def test_stories_with_a_memory_train_on_novels(data_dir):
    alone, with_it = (retrofit.run(what, data_dir, minutes=0.02, rows=3, segments=2) for what in retrofit.contenders()[:2])
    assert alone["beyond"] == alone["beyond_cleared"]
    assert with_it["beyond"] != with_it["beyond_cleared"]
    assert with_it["own_story_before_training"]["inside"] < 1.1 * alone["own_story_before_training"]["inside"]

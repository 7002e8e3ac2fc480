"""The plumbing of pairs by memories that learn while they read: states about as large, and rows by the command they are asked for with."""

import json
from dataclasses import replace

from memseq.recipes import atlas, linear_attention

FEW = {"stages": ((1, 2, 16),), "batch_size": 2, "asked": 2}


def test_states_are_about_as_large():
    sizes = {what.name: linear_attention.run(replace(what, **FEW))["state_bytes"] for what in atlas.contenders()}
    assert len(sizes) == 9
    assert 0.95 * sizes["gated_deltanet"] < min(sizes.values())
    assert max(sizes.values()) < 1.5 * sizes["gated_deltanet"]


def test_the_sweep_trains_the_rows_of_this_recipe(monkeypatch, tmp_path):
    rows, path = [replace(what, **FEW) for what in atlas.contenders()], tmp_path / "rows.json"
    monkeypatch.setattr(atlas, "contenders", lambda: rows)
    atlas.main(["--part", "sweep", "--only", "titans", "--rates", "0.01", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["command"] == "python -m memseq.recipes.atlas"
    assert [(row["part"], row["name"]) for row in found["rows"]] == [("sweep 0.01", "titans")]

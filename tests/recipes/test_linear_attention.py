"""The recipe of pairs: its rows are as large as it says, and a run is a row in a file."""

import json
from dataclasses import replace

from memseq.recipes import linear_attention as recipe


def test_the_matrices_of_all_rows_are_of_one_size():
    for what in recipe.contenders():
        state = what.memory.build().init_state(1)
        assert state[0].numel() == (8192 if "four times" in what.name else 2048), what.name


def test_a_run_is_a_row(monkeypatch, tmp_path):
    few = replace(recipe.contenders()[0], stages=((1, 4, 32), (1, 8, 64)), batch_size=3, asked=2)
    row = recipe.run(few)
    assert row == recipe.run(few) | {name: row[name] for name in ("cpu_seconds", "cpu_seconds_of_asking")}
    assert row != recipe.run(few, seed=1)
    assert set(row["accuracy"]) == {"8", "16", "32"}
    monkeypatch.setattr(recipe, "run", lambda what, *, seed: {"name": what.name, "seed": seed})
    recipe.main(["--json", str(tmp_path / "rows.json"), "--only", "retnet", "--seeds", "2"])
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"name": "retnet", "seed": seed} for seed in (0, 1)]

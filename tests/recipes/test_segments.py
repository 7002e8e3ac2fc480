"""The comparison of segment memories: its plumbing on few steps, and that its rows are comparable."""

import json
from dataclasses import replace

from memseq.recipes import rmt, segments


def test_every_row_trains_is_asked_and_kept(tmp_path, monkeypatch):
    rows = [replace(what, seconds=0.1, times=(1,)) for what in segments.contenders()]
    monkeypatch.setattr(segments, "contenders", lambda: rows)
    file = tmp_path / "segments.json"
    segments.main(["--json", str(file)])
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == [what.name for what in rows]
    assert all(row["steps"] >= 1 and set(row["accuracy"]) == {"4"} for row in result["rows"])
    segments.main(["--json", str(file)])  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


def test_rows_have_equal_budgets_and_states_that_stay():
    rows = segments.contenders()
    assert len({(what.seconds, what.curriculum, what.lr, what.batch_size, what.times) for what in rows}) == 1
    assert len({what.model.d_model for what in rows}) == 1
    sizes = {what.name: segments.held(what.model) for what in rows}
    slots = 4 * rmt.SLOTS * rmt.D
    assert all(slots <= sizes[name] <= slots + 1000 for name in ("memformer", "rmt"))
    assert sizes["transformer_xl"] > 4 * slots

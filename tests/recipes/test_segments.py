"""The comparison of segment memories: its plumbing on few steps, and that its rows are comparable."""

import json

from memseq.recipes import segments


def test_every_row_trains_is_asked_and_kept(tmp_path):
    file = tmp_path / "segments.json"
    arguments = ["--json", str(file), "--steps", "1", "--seeds", "1"]
    segments.main(arguments)
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == list(segments.contenders())
    for row in result["rows"]:
        assert set(row["accuracy"]) == {str(n) for n in segments.ASKED}
        assert abs(row["parameters"] / segments.WEIGHTS - 1) < 0.01
        if row["name"][-1].isdigit() and not row["name"].endswith("noise 1"):
            continue  # another state, as its name says
        assert abs(row["state_bytes"] / segments.BYTES - 1) < 0.06, row["name"]
    segments.main(arguments)  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]

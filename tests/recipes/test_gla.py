"""The recipe of pairs: equal matrices in every row, and results that survive a run that was cut."""

import json

from memseq.recipes.gla import D, contenders, main
from memseq.state import tensors


def test_every_row_has_a_matrix_of_the_same_size():
    sizes = {what.name: tensors(what.memory.build().init_state(1))[0].numel() for what in contenders()}
    assert set(sizes.values()) == {D * D // 2}, sizes
    assert len(sizes) == len(contenders())


def test_rows_are_kept_in_the_file_and_replaced_when_measured_again(tmp_path, capsys):
    path = tmp_path / "gla.json"
    for seed in ("0", "1", "1"):
        main(["--only", "gla", "--steps", "1", "--seeds", "1", "--first-seed", seed, "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["name"], row["seed"]) for row in rows] == [("gla", 0), ("gla", 1)]
    assert all(row["accuracy"].keys() == {"8", "16", "32"} for row in rows)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] == rows[-1]["accuracy"]  # the same seed, the same number

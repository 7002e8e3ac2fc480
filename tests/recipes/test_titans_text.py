"""The plumbing of Titans on text: contenders of equal weights and state, and a row for each that is kept."""

import json

import torch

from memseq.recipes import titans_text as recipe
from memseq.recipes.fitting import weights_of
from memseq.state import state_bytes


def test_contenders_are_equal_in_weights_and_state():
    configs = recipe.contenders(recipe.SHAPE)
    sizes = [weights_of(config) for config in configs.values()]
    assert max(sizes) < 1.001 * min(sizes)
    held = {}
    equal = ("LMM", "LMM, eight heads, to first", "LMM, online, to first", "LMM, online, no momentum, to first", "Gated DeltaNet")
    for name in (*equal, "sliding window"):
        model = configs[name].build()
        held[name] = state_bytes(model.advance(torch.zeros(1, 64, dtype=torch.int64), model.init_state(1)))
    assert max(held.values()) < 1.08 * min(held.values()), held


def test_a_run_leaves_a_row_of_each_name(tmp_path, capsys):
    text, path = tmp_path / "text.txt", tmp_path / "rows.json"
    text.write_text("All the king's horses and all the king's men couldn't put Humpty together again. " * 400)
    command = [str(text), "--steps", "1", "--scored", "64", "--json", str(path)]
    recipe.main([*command, "--only", "LMM, linear"])
    recipe.main([*command, "--only", "LMM, linear", "sliding window"])
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["LMM, linear", "sliding window"]
    assert all(row["tokens"] == 2048 and row["bits_per_byte"] > 4 for row in rows)
    assert capsys.readouterr().out.count("\n") == 2

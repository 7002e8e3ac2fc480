"""LaMemo beside Transformer-XL: its plumbing on few steps, that rows are comparable, and which of them are taught across the border."""

import json

import torch

from memseq.recipes import lamemo as recipe
from memseq.recipes.fitting import weights
from memseq.state import tensors


def test_rows_are_of_one_size_and_hold_the_story():
    sizes = {name: weights(config.build()) for name, config in recipe.contenders().items()}
    assert max(sizes.values()) / min(sizes.values()) < 1.01
    for config in recipe.contenders().values():
        model = config.build()
        story = recipe.TASK.sample(2, 0).inputs[:, : recipe.TASK.segment_length]
        other = story.clone()
        other[:, 0] = (other[:, 0] + 1) % recipe.TASK.n_kinds
        asked = torch.full((2, 1), recipe.TASK.vocab_size - 1)
        one, two = (model(asked, model.advance(read, model.init_state(2)))[0] for read in (story, other))
        assert (one - two).abs().amax() > 0  # the story's first token is still there


def test_questions_teach_how_the_story_is_kept_in_one_row_alone():
    story, taught = recipe.TASK.sample(2, 0).inputs[:, : recipe.TASK.segment_length], {}
    for name, config in recipe.contenders().items():
        model = config.build()
        taught[name] = any(leaf.requires_grad for leaf in tensors(model.advance(story, model.init_state(2))))
    assert [name for name, yes in taught.items() if yes] == ["transformer_xl, full gradient"]


def test_a_run_is_a_row_and_rows_are_not_repeated(tmp_path):
    path = tmp_path / "rows.json"
    for _ in range(2):
        recipe.main(["--seeds", "1", "--steps", "1", "--json", str(path)])
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["rows"]] == list(recipe.contenders())
    assert result["chance"] == 1 / 8
    assert all(0 <= row["accuracy"] < 0.4 and "1" in row["by_tokens_to_the_meaning"] for row in result["rows"])

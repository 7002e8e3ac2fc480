"""The recipe of SORT: players that know the order, or always say the same, and the pretrained model's rows."""

import json

import pytest
import torch

from memseq.recipes import sort as recipe
from memseq.recipes.fitting import weights_of
from memseq.tasks.order import OrderTask


class Player:
    def __init__(self, says=None):
        self.says = says

    def init_state(self, rows):
        return None

    def __call__(self, inputs, state):
        task = OrderTask(n_read=inputs.shape[1] - 1 - 3 * OrderTask().n_asked)
        said = task.oracle(inputs) if self.says is None else torch.full_like(inputs, self.says)
        return torch.nn.functional.one_hot(said, task.vocab_size).float(), state


def test_who_knows_the_order_needs_the_excerpt_and_who_does_not_is_at_chance():
    finger, stubborn = recipe.asked(Player()), recipe.asked(Player(says=OrderTask().n_tokens + 2))
    assert finger["read"] == 1.0
    assert set(finger["by_distance"].values()) == set(finger["by_length"].values()) == {1.0}
    assert finger["unread"] == pytest.approx(0.5, abs=0.04)
    assert stubborn["read"] == pytest.approx(0.5, abs=0.04)
    assert stubborn["unread"] == pytest.approx(0.5, abs=0.04)


def test_claims_are_of_the_worst_seed_and_of_two_standard_errors():
    rows = [
        {"part": "learned", "name": "attention", "read": 1.0, "unread": 0.5},
        {"part": "learned", "name": "attention", "read": 0.9, "unread": 0.51},
        {"part": "learned", "name": "window of 4", "read": 0.5, "unread": 0.6},
        {"part": "pretrained", "name": "stories260K", "gain": 0.05, "gain_error": 0.02},
        {"part": "learned", "name": recipe.LIKELIHOOD, "read": 0.99, "unread": 0.5},
    ]
    told = recipe.claims(rows)
    assert not told["learned, with"]["ok"]
    assert told["learned, without"] == {"target": 0.52, "reached": 0.6, "ok": False}
    assert told["pretrained"]["ok"]
    assert told["likelihood, with"]["ok"]
    assert not recipe.claims([rows[3] | {"gain_error": 0.03}])["pretrained"]["ok"]


def test_a_short_run_leaves_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "QUESTIONS", 8)
    path = tmp_path / "rows.json"
    for _ in range(2):  # what the file holds is not repeated
        recipe.main(["--seconds", "0.01", "--seeds", "1", "--json", str(path)])
    recipe.main(["--seconds", "0.01", "--seeds", "1", "--first-seed", "1", "--names", "mamba2", "--json", str(path)])
    told = json.loads(path.read_text())
    assert (told["rows"][-1]["name"], told["rows"].pop()["seed"]) == ("mamba2", 1)
    assert [(row["part"], row["name"]) for row in told["rows"]] == [
        *(("learned", name) for name in recipe.contenders()),
        ("learned", recipe.LIKELIHOOD),
    ]
    assert told["claims"].keys() == {"learned, with", "learned, without", "likelihood, with"}


def test_all_have_as_many_weights():
    assert {round(weights_of(recipe.config_of(name)) / weights_of(recipe.config_of("attention")), 2) for name in recipe.contenders()} == {
        1.0
    }


def test_pairs_are_written_as_the_probe_writes_them_the_earlier_first():
    letters, places = recipe.lines(6, 8, 3, torch.Generator().manual_seed(0))
    tokens, targets = recipe.written(letters, places)
    for row, said in zip(tokens.tolist(), targets.tolist(), strict=True):
        excerpt, *asked = bytes(row).decode().split("\n")
        words = excerpt.split(" ")
        assert len(set(words)) == 6
        pairs = [piece for piece in asked if piece]
        assert all(words.index(a) < words.index(b) for a, b in zip(pairs[::2], pairs[1::2], strict=True))
        assert bytes(token for token in said if token >= 0).decode() == "".join(pairs)


def test_stories260k_is_asked_with_the_text_and_without(data_dir):
    row = recipe.pretrained(data_dir, excerpts=2)
    assert row["questions"] == 8
    assert [cell["up_to"] for cell in row["bins"]] == [25, 33, 50, 80]
    assert row["gain"] == pytest.approx(row["read"] - row["unread"])

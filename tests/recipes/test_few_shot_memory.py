"""The protocol of a few exposures: losses a text, recall of a model that knows, and the table."""

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from memseq.contract import Memory
from memseq.memories.gru import GRUConfig
from memseq.models.stack import StackConfig
from memseq.recipes import few_shot_memory as recipe


class Place(NamedTuple):
    which: Tensor
    read: Tensor


def made():
    torch.manual_seed(0)
    return StackConfig(vocab_size=256, d_model=16, layers=(GRUConfig(d_model=16),)).build().eval()


def test_a_texts_loss_is_its_own_whatever_stands_beside_it():
    model, texts = made(), ["a short one.", "a text that is a good deal longer than the other."]
    together = recipe.losses(model, texts)
    assert together == pytest.approx([recipe.losses(model, [text])[0] for text in texts], rel=1e-5)


def test_a_player_that_knows_the_text_recalls_it_and_another_does_not():
    text = "one two three four five six seven eight."

    other = "a shorter text of another sort."

    class Knows(Memory):
        def __init__(self, *what):
            super().__init__()
            self.what, self.weight = what, torch.nn.Parameter(torch.zeros(1))

        def check_input(self, x, state):
            assert x.ndim == 2

        def init_state(self, batch_size):
            return Place(torch.arange(batch_size) % len(self.what), torch.zeros(batch_size, dtype=torch.int64))

        def forward(self, tokens, state):
            said = torch.zeros(*tokens.shape, 256)
            for row, (which, read) in enumerate(zip(*state, strict=True)):
                for i in range(tokens.shape[1]):
                    said[row, i, self.what[which][(int(read) + i + 1) % len(self.what[which])]] = 1.0
            return said, Place(state.which, state.read + tokens.shape[1])

    assert recipe.recalled(Knows(text.encode(), other.encode()), [text, other]) == (1.0, 1.0)
    assert recipe.recalled(Knows(b"z" * len(text)), [text]) == (0.0, 0.0)


def test_studying_lowers_the_loss_and_leaves_the_given_model(monkeypatch):
    monkeypatch.setattr(recipe, "RETAINED", (1, 3))
    model, texts = made(), [f"text number {i} of these {i * i}." for i in range(8)]
    before = recipe.losses(model, texts)
    rows = recipe.studied(
        model, "words", [f"alpha beta gamma delta {w} omega." for w in map(chr, range(97, 123))] + WORDS, WORDS, n=4, lr=1e-2, seed=0
    )
    assert recipe.losses(model, texts) == before
    assert [(row["exposures"], row["steps_since"]) for row in rows] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 3)]
    assert rows[3]["recognised"]["words"] >= rows[0]["recognised"]["words"]


WORDS = [f"{a}ble {b}ter {a}{b}one round sound found." for a in "tfcb" for b in "wmls"]


def test_the_table_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "D", 8)
    monkeypatch.setattr(recipe, "RETAINED", (1,))
    path = tmp_path / "results.json"
    recipe.main(["--steps", "2", "--texts", "4", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["part"] for row in rows] == 5 * ["sentences"] + 5 * ["words"] + 5 * ["gibberish"]
    assert set(rows[0]["recognised"]) == {"sentence", "word"}

"""The recipe of repeated data: what its measures say of players whose memory is known, and that its rows come from where they should."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from memseq.recipes import repeated as recipe


class Copier:
    """Says what followed this byte the last time, and anything where it is new."""

    config = SimpleNamespace(vocab_size=256)

    def __init__(self, sure):
        self.sure = sure

    def init_state(self, rows):
        return torch.zeros(rows, 0, dtype=torch.int64)

    def __call__(self, tokens, state):
        stream = torch.cat([state, tokens], dim=1)
        logits = torch.zeros(*tokens.shape, 256, dtype=torch.float64)
        for row, seen in enumerate(stream.tolist()):
            for i in range(tokens.shape[1]):
                t = state.shape[1] + i
                before = [s for s in range(t) if seen[s] == seen[t]]
                if before:
                    logits[row, i] = math.log((1 - self.sure) / 255)
                    logits[row, i, seen[before[-1] + 1]] = math.log(self.sure)
        return logits, stream

    def advance(self, tokens, state):
        return torch.cat([state, tokens], dim=1)


def test_who_copies_gains_all_but_its_doubt_and_who_forgets_gains_nothing():
    passages = torch.stack([torch.randperm(96)[:12] + 30 for _ in range(3)])
    found = recipe.copying(Copier(0.5), passages)
    assert found == {"first": 8.0, "second": 1.0, "gain": 7.0}
    assert recipe.copying(Copier(1 / 256), passages)["gain"] == 0.0


class Heads:
    """The first head looks everywhere alike; the second, where it is there, at what followed the last token before."""

    def __init__(self, induction):
        self.induction = induction

    def weights(self, tokens):
        even = torch.full(tokens.shape, 1 / tokens.shape[1])
        after = (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1) + 1
        return torch.stack([even, torch.nn.functional.one_hot(after, tokens.shape[1]).float()][: 1 + self.induction])


def test_prefix_matching_is_one_for_a_head_of_induction_and_small_without(monkeypatch):
    monkeypatch.setattr(recipe, "attention_of", Heads)
    generator = torch.Generator().manual_seed(0)
    for budget in recipe.BUDGETS.values():
        assert recipe.prefix_matching(True, budget, generator) == 1.0
        assert recipe.prefix_matching(False, budget, generator) < 0.1


def test_runs_of_other_numbers_of_readings_read_as_many_bytes_and_the_same_held_out_ones():
    texts, found = recipe.stdlib(), []
    for epochs in (1, 50):
        mixture = recipe.Mixture(n_rows=400, share=0.5, epochs=epochs)
        found.append(recipe.material(mixture, texts, recipe.Budget(held_out=16, copies=0.5, passages=(4, 16))))
        assert len(found[-1].pool) == mixture.pool_size == 200 // epochs
    assert found[0].held_out.equal(found[1].held_out)
    assert (found[0].once[:200] == found[1].once[:200]).all()


def test_every_other_row_is_a_passage_over_and_over():
    budget = recipe.BUDGETS["copies"]
    text = torch.full((7, budget.length), 10, dtype=torch.uint8).numpy()
    found = recipe.with_copies(text, budget, seed=(0, 1))
    assert (text == 10).all()  # what was given stays
    assert [bool((row == 10).all()) for row in found] == [True, False, True, False, True, False, True]
    for row in found[1::2]:
        m = next(m for m in range(4, 17) if (row[m:] == row[:-m]).all())
        assert len(set(row[:m])) == m
        assert set(row.tolist()) <= set(recipe.LETTERS.tolist())
    assert (recipe.with_copies(text, recipe.BUDGETS["text"], seed=(0, 1)) == text).all()


def row(name, held_out, seed=0, copied=1.0, part="text"):
    copies = {"gain": copied}
    return {"part": part, "name": name, "seed": seed, "held_out": held_out, "copying": {"text": copies, "random": copies}}


def test_a_peak_counts_above_both_ends_and_in_every_seed():
    shown = [row("1", 3.0), row("10", 3.1), row("100", 3.5), row("1000", 3.25), row("without", 9.0)]
    told = recipe.claims(shown)
    assert recipe.claims([row("1", 3.0), row("10", 3.0, copied=0.5), row("100", 3.0, copied=0.25)])["text: copying of text"]["ok"] is False
    assert recipe.claims([row("1", 3.0), row("10", 3.0, copied=0.5), row("100", 3.0)])["text: copying of text"]["ok"]
    assert told["text: double descent"] == {"above_both_ends": {"0": 0.25}, "mean": 0.25, "ok": True}
    assert not told["text: copying of text"]["ok"]
    other = [row("1", 3.0, 1), row("100", 3.2, 1), row("1000", 3.3, 1)]
    assert recipe.claims([*shown, *other])["text: double descent"] == {
        "above_both_ends": {"0": 0.25, "1": -0.1},
        "mean": 0.075,
        "ok": False,
    }


def test_what_repetition_costs_is_told_in_steps():
    def rows(seed, copied):
        ends = [row("1", 2.0, seed, 5.0, "copies"), row("1 at 0.5", 3.0, seed, 4.0, "copies"), row("1 at 0.25", 4.0, seed, 0.0, "copies")]
        return [
            *ends,
            row("100", 2.5, seed, copied, "copies"),
            row("10", 2.2, seed, 4.9, "copies"),
            row("without", 9.0, seed, 0.0, "copies"),
        ]

    told = recipe.claims([*rows(0, 2.0), *rows(1, -1.0)])["copies: copying is damaged more"]
    assert told["share_of_the_steps"] == {
        "0": {"readings": "100", "held out": 0.75, "copying": 0.375},
        "1": {"readings": "100", "held out": 0.75, "copying": 0.25},
    }
    assert told["ok"]
    assert not recipe.claims([*rows(0, 2.0), *rows(1, 4.8)])["copies: copying is damaged more"]["ok"]


def test_a_short_run_leaves_its_rows(tmp_path):
    path = tmp_path / "rows.json"
    for _ in range(2):  # what the file holds is not repeated
        recipe.main(["--seeds", "1", "--steps", "4", "--parts", "text", "--epochs", "1", "4", "16", "--held-out", "8", "--json", str(path)])
    told = json.loads(path.read_text())
    assert [row["name"] for row in told["rows"]] == ["1", "4", "16", "without"]
    assert [row["pool_rows"] for row in told["rows"]] == [32, 8, 2, 0]
    whole, half = told["rows"][0]["bytes_read"], told["rows"][-1]["bytes_read"]
    assert whole == 64 * recipe.Budget.length
    assert half == pytest.approx(whole / 2, rel=0.4)
    assert told["claims"].keys() == {"text: double descent", "text: copying of text", "text: copying at random"}


def test_a_short_run_with_copies_has_shorter_trainings_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SHORTER", (0.5,))
    path = tmp_path / "rows.json"
    recipe.main(["--seeds", "1", "--steps", "4", "--parts", "copies", "--epochs", "1", "8", "--held-out", "8", "--json", str(path)])
    told = json.loads(path.read_text())
    assert [(row["name"], row["steps"]) for row in told["rows"]] == [("1", 4), ("8", 4), ("without", 4), ("1 at 0.5", 2)]
    assert set(told["claims"]) == {"copies: copying is damaged more"}

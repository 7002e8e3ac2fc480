"""The recipe of noun lists: its texts are what they say, and players whose memory is known get the numbers that follow from it."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from memseq.recipes import verbatim as recipe
from memseq.recipes.fitting import weights_of


def test_both_rows_have_as_many_weights():
    sizes = [weights_of(config) for config in recipe.contenders().values()]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.005)


def test_lists_are_of_their_condition():
    generator = torch.Generator().manual_seed(0)
    for condition in recipe.CONDITIONS:
        first, second = recipe.lists(50, 5, condition, generator)
        assert all(len(set(row)) == 5 for row in [*first.tolist(), *second.tolist()])
        if condition == "repeat":
            assert first.equal(second)
        elif condition == "permute":
            assert not (first == second).any()
            assert first.sort(1).values.equal(second.sort(1).values)
        else:
            assert not any(set(a) & set(b) for a, b in zip(first.tolist(), second.tolist(), strict=True))


def test_a_lesson_asks_for_the_nouns_of_both_lists_and_mostly_repeats():
    generator, repeats, budget = torch.Generator().manual_seed(0), [], recipe.Budget()
    for _ in range(20):
        tokens, targets = recipe.lesson(budget, generator)
        for row, said in zip(tokens.tolist(), targets.tolist(), strict=True):
            again = row.index(recipe.AGAIN)
            first = [token for token in row[1:again] if token < recipe.NOUNS]
            assert row[0] == recipe.LIST
            assert recipe.SIZES[0] <= len(first) <= recipe.SIZES[1]
            assert [token for token in said if token >= 0] == [token for token in row if token < recipe.NOUNS]
            repeats.append(first == row[again + 1 :])
    assert 0.8 < sum(repeats) / len(repeats) < 0.97


class Player(nn.Module):
    """After [again], lays `sure` on the nouns it knows: the one in the same place, or all that were shown alike."""

    def __init__(self, order, sure=0.9):
        super().__init__()
        self.config, self.order, self.sure, self.weight = SimpleNamespace(vocab_size=recipe.V), order, sure, nn.Parameter(torch.zeros(()))

    def init_state(self, rows):
        return torch.zeros(rows, 0, dtype=torch.int64)

    def forward(self, tokens, state):
        stream = torch.cat([state, tokens], dim=1)
        logits = torch.zeros(*tokens.shape, recipe.V)
        for row, seen in enumerate(stream.tolist()):
            for t in range(tokens.shape[1]):
                read = seen[: state.shape[1] + t + 1]
                if recipe.AGAIN in read:
                    again = read.index(recipe.AGAIN)
                    shown = [token for token in read[:again] if token < recipe.NOUNS]
                    place = min(len(read) - again - 1, len(shown) - 1)
                    known = [shown[place]] if self.order else shown
                    logits[row, t] = math.log((1 - self.sure) / (recipe.V - len(known)))
                    logits[row, t, known] = math.log(self.sure / len(known))
        return logits, stream

    def advance(self, tokens, state):
        return torch.cat([state, tokens], dim=1)


@torch.no_grad()
def test_who_knows_the_order_is_surprised_by_another_and_who_knows_the_nouns_is_not():
    first = math.log(recipe.V)
    word = recipe.read(Player(order=True), 4, 3, texts_of_each=8)
    bag = recipe.read(Player(order=False), 4, 3, texts_of_each=8)
    known, unknown = -math.log(0.9), -math.log(0.1 / (recipe.V - 1))
    assert word["repeat"][0] == pytest.approx(100 * known / first, abs=0.06)
    assert word["permute"][0] == word["control"][0] == pytest.approx(100 * unknown / first, abs=0.06)
    assert bag["repeat"] == bag["permute"]
    assert bag["repeat"][0] == pytest.approx(100 * -math.log(0.9 / 4) / first, abs=0.06)
    assert bag["control"][0] > 100


def row(name, repeat, permute):
    return {"name": name, "asked": [{"nouns": 5, "between": 8, "repeat": [repeat], "permute": [permute]}]}


def test_claims_are_of_the_worst_seed():
    good = [row("attention", 5.0, 120.0), row("lstm", 60.0, 70.0)]
    assert all(claim["ok"] for claim in recipe.claims(good).values())
    bad = recipe.claims([*good, row("attention", 50.0, 55.0), row("lstm", 10.0, 90.0)])
    assert not any(claim["ok"] for claim in bad.values())


def test_a_short_run_leaves_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "ASKED", ((3, 0), (5, 8)))
    path = tmp_path / "rows.json"
    for _ in range(2):  # what the file holds is not repeated
        recipe.main(["--seeds", "1", "--seconds", "0.01", "--json", str(path)])
    told = json.loads(path.read_text())
    assert [(row["name"], len(row["asked"])) for row in told["rows"]] == [("attention", 2), ("lstm", 2)]
    assert told["claims"].keys() == {"word for word", "order", "gist"}

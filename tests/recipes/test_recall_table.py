"""The recipe of the table of recall: rows are of one size, questions have one answer, and a perfect player scores 1 on all of the grid."""

import json
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.recipes import recall_table as recipe
from memseq.recipes.fitting import weights_of

FEW = recipe.Budget(seconds=0.01, questions=8, streams=2, distances=(0, 20))


@pytest.mark.parametrize(
    "name", ["attention", "rmt", "dot", "titans_mac", "mamba2_lm", "rwkv7_lm", "memmamba", "recoding", "sliding_window + gated_deltanet"]
)
def test_every_way_to_a_size_ends_within_a_hundredth_of_it(name):
    assert weights_of(recipe.config_of(name)) == pytest.approx(recipe.WEIGHTS, rel=0.01)


def test_a_row_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no row 'atention'.*attention"):
        recipe.config_of("atention")


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_lesson_asks_for_the_facts_that_it_has_shown(share):
    generator = torch.Generator().manual_seed(0)
    most = next(facts for until, facts, _ in recipe.STAGES if share <= until)
    for _ in range(20):
        tokens, targets = recipe.lesson(share, generator)
        for row, said in zip(tokens.tolist(), targets.tolist(), strict=True):
            facts = dict(divmod(token, recipe.N_VALUES) for token in row if token < recipe.FACTS)
            asked = [place for place, token in enumerate(said) if token != -100]
            assert 1 <= len(facts) == len(asked) <= most
            keys, values = ([int(token) - first for token in found] for found, first in _said(row, said, asked))
            assert {key: facts[key] for key in keys} == dict(zip(keys, values, strict=True))


def _said(row, said, asked):
    yield [row[place] for place in asked], recipe.FACTS
    yield [said[place] for place in asked], recipe.FACTS + recipe.N_KEYS


class Table(NamedTuple):
    values: Tensor  # [B, keys], -1 where nothing was shown


class Player(nn.Module):
    """Knows every fact that it read, or the last `reach` tokens' alone."""

    def __init__(self, reach=10**9):
        super().__init__()
        self.config, self.reach, self.weight = SimpleNamespace(vocab_size=recipe.V), reach, nn.Parameter(torch.zeros(()))

    def init_state(self, rows):
        return Table(torch.full((rows, recipe.N_KEYS, 2), -1))

    def advance(self, tokens, state):
        known = state.values.clone()
        for token in tokens.T:
            known[..., 1] += 1  # how long ago
            for row in (token < recipe.FACTS).nonzero()[:, 0].tolist():
                key, value = divmod(int(token[row]), recipe.N_VALUES)
                known[row, key] = torch.tensor([value, 0])
        return Table(known)

    def step(self, tokens, state):
        found = state.values[torch.arange(len(tokens)), tokens - recipe.FACTS]
        value = torch.where(found[:, 1] < self.reach, found[:, 0], torch.randint(recipe.N_VALUES, (len(tokens),)))
        return nn.functional.one_hot(recipe.ALPHABET.values[value], recipe.V).float(), state


def test_a_perfect_player_answers_everywhere_and_one_that_forgets_up_to_where_it_does():
    torch.manual_seed(0)
    few = recipe.Budget(questions=200, streams=25)
    assert recipe.recall(Player(), (1, 4, 16), (0, 20), seed=0, budget=few) == [[1.0, 1.0]] * 3
    near, far = zip(*recipe.recall(Player(reach=20), (1, 4, 16), (0, 20), seed=0, budget=few), strict=True)
    assert near == (1.0, 1.0, 1.0)
    assert all(abs(share - 1 / recipe.N_VALUES) < 0.1 for share in far), far


def test_a_run_tells_what_it_measured():
    row = recipe.run("gru", lr=1e-2, budget=FEW)
    assert (len(row["recall"]), {len(cells) for cells in row["recall"]}) == (len(recipe.LOADS), {len(FEW.distances)})
    assert row["state_bytes"] == 2 * 4 * recipe.SHAPE["d_model"]
    assert row["parameters"] == weights_of(recipe.config_of("gru"))


def test_what_the_file_holds_is_not_run_again(tmp_path, monkeypatch):
    path, runs = tmp_path / "rows.json", []

    def run(name, *, lr, seed, budget):
        runs.append((name, lr, seed, budget.seconds))
        return {"name": name, "lr": lr, "seed": seed}

    monkeypatch.setattr(recipe, "run", run)
    recipe.main(["--only", "gru", "--rate", "0.003", "--json", str(path)])
    recipe.main(["--only", "gru,lstm", "--seconds", "2", "--json", str(path)])
    assert runs == [("gru", 0.003, 0, 12.0), ("gru", 0.01, 0, 2.0), ("lstm", 0.01, 0, 2.0), ("lstm", 0.003, 0, 2.0)]
    assert len(json.loads(path.read_text())["rows"]) == 4


def test_the_rate_is_chosen_by_questions_of_their_own():
    rows = [{"name": "a", "lr": 1, "chosen_by": 0.4}, {"name": "a", "lr": 2, "chosen_by": 0.6}, {"name": "b", "lr": 1, "chosen_by": 0.1}]
    assert {name: row["lr"] for name, row in recipe.chosen(rows).items()} == {"a": 2, "b": 1}

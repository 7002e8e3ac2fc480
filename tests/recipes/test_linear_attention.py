"""The recipe of pairs: its rows are as large as it says, rates come from the sweep, and a run that was cut goes on."""

import json
from dataclasses import replace

import pytest

from memseq.errors import InputError
from memseq.recipes import linear_attention as recipe
from memseq.recipes.fitting import weights
from memseq.state import tensors


def test_the_matrices_of_the_family_are_of_one_size():
    sizes = {what.name: tensors(memories(what)[-1].build().init_state(1))[0].numel() for what in recipe.contenders()}
    assert len(sizes) == len(recipe.contenders())
    family = {size for name, size in sizes.items() if name not in recipe.ENDS and name != "based, convolution"}
    assert family == {2048}, sizes
    assert sizes["based, convolution"] == 28 * 2 * 33  # the values and a sum; one more number in a key makes 36 features


def test_weights_differ_by_no_more_than_the_sheet_of_the_table_says():
    sizes = {what.name: weights(recipe.model_of(what)) for what in recipe.contenders()}
    assert all(74_000 < size < 101_000 for size in sizes.values()), sizes


def memories(what):
    return what.memory if isinstance(what.memory, tuple) else (what.memory,)


def test_a_run_is_a_row_of_its_seed_rate_and_questions():
    few = replace(
        next(what for what in recipe.contenders() if what.name == "gated_deltanet"), stages=((1, 2, 16), (1, 4, 32)), batch_size=3, asked=2
    )
    row = recipe.run(few)
    assert row == recipe.run(few) | {"cpu_seconds": row["cpu_seconds"]}
    assert row["accuracy"].keys() == {"4", "8", "16"}
    state = recipe.model_of(few).init_state(1)
    assert row["state_bytes"] == sum(4 * leaf.numel() for leaf in tensors(state))


def test_tests_train_at_the_rate_that_their_own_sweep_found_best(monkeypatch, tmp_path):
    asked = []

    def run(what, *, seed, questions=0):
        asked.append((seed, questions))
        good = (what.name == "mamba2") == (what.lr == max(recipe.RATES))  # mamba2 alone learns at the higher rate
        return {"name": what.name, "seed": seed, "lr": what.lr, "accuracy": {"4": 0.9 if good else 0.1, "8": 0.1}}

    monkeypatch.setattr(recipe, "run", run)
    path = str(tmp_path / "rows.json")
    with pytest.raises(InputError, match="no sweep of"):
        recipe.main(["--part", "test", "--json", path])
    for name in ("mamba2", "retnet"):
        recipe.main(["--part", "sweep", "--json", path, "--only", name])
    for name in ("mamba2", "retnet"):
        recipe.main(["--part", "test", "--json", path, "--only", name, "--seeds", "2"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    tests = [(row["name"], row["seed"], row["lr"]) for row in rows if row["part"] == "test"]
    low, high = min(recipe.RATES), max(recipe.RATES)
    assert tests == [("mamba2", 0, high), ("mamba2", 1, high), ("retnet", 0, low), ("retnet", 1, low)]
    swept = 2 * len(recipe.RATES)
    assert set(asked[:swept]) == {(recipe.SWEEP_SEED, recipe.SWEEP_SEED)}  # a seed and questions that no test has
    assert set(asked[swept:]) == {(0, 0), (1, 0)}
    before = len(asked)
    recipe.main(["--part", "sweep", "--json", path, "--only", "mamba2"])
    recipe.main(["--part", "test", "--json", path, "--only", "mamba2"])
    assert len(asked) == before  # what the file holds is not repeated

"""The recipe of Aaren compares what it says it compares; what it reaches is measured by running it."""

import json
from itertools import pairwise

import torch

from memseq.recipes import aaren
from memseq.recipes.fitting import Table, fit, weights
from memseq.tasks.series import LabelledSeries


def toy_vowels() -> LabelledSeries:
    series = tuple(torch.randn(7 + i % 5, 12) + i % 2 for i in range(40))
    return LabelledSeries(series, torch.arange(40) % 2, ("low", "high"))


def test_contenders_differ_by_a_vector_a_layer() -> None:
    models = {name: aaren.language_model(name, d_model=32, n_layers=3) for name in aaren.MEMORIES}
    assert weights(models["aaren"]) - weights(models["attention"]) == 3 * 32


def test_vowels_that_differ_are_told_apart() -> None:
    data = toy_vowels()
    for name in aaren.MEMORIES:
        assert aaren.vowels(name, data, data, steps=40, d_model=16)["accuracy"] > 0.9


def test_a_stream_of_aaren_holds_what_it_held_and_that_of_attention_grows() -> None:
    held = {name: list(aaren.stream(name, marks=(128, 256))["bytes"].values()) for name in aaren.MEMORIES}
    assert held["aaren"][0] == held["aaren"][1]
    assert held["attention"][1] > 1.9 * held["attention"][0]


def test_rows_are_kept_from_run_to_run_and_replaced_by_their_like(tmp_path, capsys) -> None:
    path = tmp_path / "results.json"
    Table("command", str(path)).add(part="elsewhere", name="aaren", finite=True)
    for steps in ("1", "2"):
        aaren.main(["--only", "pairs,vowels", "--steps", steps, "--seeds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["part"], row["name"]) for row in rows] == [("elsewhere", "aaren"), ("pairs", "aaren"), ("pairs", "attention")]
    assert [row["steps"] for row in rows[1:]] == [2, 2]
    assert len(capsys.readouterr().out.splitlines()) == 5  # no folder, no row: vowels are left out


def test_fitting_ends_with_the_rate_at_nothing_and_the_model_in_eval() -> None:
    model, rates = torch.nn.Linear(1, 1), []

    def loss(step):
        before = model.weight.detach().clone()
        rates.append(before)
        return (model(torch.ones(4, 1)) - 3).square().mean()

    fit(model, loss, steps=60, lr=0.1)
    assert not model.training
    moves = [float((b - a).abs()) for a, b in pairwise(rates)]
    assert moves[-1] < 0.05 * max(moves)


def test_a_table_without_a_file_only_shows(capsys) -> None:
    Table("command", None).add(part="a", name="b", value=1)
    assert json.loads(capsys.readouterr().out) == {"part": "a", "name": "b", "value": 1}

"""The recipe of Stable Hadamard memory compares what it says it compares."""

import json

import torch

from memseq.recipes import stable_hadamard as recipe
from memseq.recipes.fitting import weights
from memseq.state import state_bytes
from memseq.tasks.popgym import AutoencodeTask, RepeatPreviousTask


def test_memories_have_equal_matrices_and_the_gru_equal_weights() -> None:
    models = {name: recipe.language_model(memory, RepeatPreviousTask()) for name, memory in recipe.MEMORIES.items()}
    held = {name: state_bytes(model.init_state(1)) for name, model in models.items()}
    assert len({held[name] for name in models if "gru" not in name}) == 1
    assert abs(weights(models["gru"]) / weights(models["random rows"]) - 1) < 0.01


def test_an_untrained_player_is_at_chance_and_every_game_is_asked() -> None:
    told = recipe.play(recipe.MEMORIES["fixed row"], (AutoencodeTask(n_cards=8), AutoencodeTask(n_cards=12)), steps=1, batch_size=2)
    assert set(told["accuracy"]) == set(told["chance"]) == {"15", "23"}
    assert all(value < 0.5 for value in told["accuracy"].values())


def test_a_card_just_gone_is_learned() -> None:
    told = recipe.play(recipe.MEMORIES["random rows"], (RepeatPreviousTask(k=2, n_cards=12),), steps=60, batch_size=16)
    assert told["accuracy"]["12"] > 0.6


def test_gates_are_stable_and_calibrations_are_measured() -> None:
    gates, random = (recipe.stability(name, tokens=2000, size=6) for name in ("gates", "random rows"))
    assert gates["finite"]
    assert gates["largest"] < 5 < random["largest"]


def test_the_table_of_a_run(tmp_path) -> None:
    path = tmp_path / "results.json"
    recipe.main(
        ["--only", "repeat,stability", "--names", "no row", "--seeds", "1", "--steps", "1", "--tokens", "1000", "--json", str(path)]
    )
    rows = json.loads(path.read_text())["rows"]
    assert [row["part"] for row in rows] == 4 * ["stability"] + 3 * ["repeat_previous"]
    assert {row["task"] for row in rows[4:]} == {f"repeat_previous, k = {k}" for k in (4, 8, 32)}


def test_stability_is_a_function_of_its_seed() -> None:
    torch.manual_seed(1)
    one = recipe.stability("fixed row", tokens=1000, size=4)
    torch.manual_seed(2)
    assert recipe.stability("fixed row", tokens=1000, size=4) == one

"""The recipe of recoding measures what it says."""

import json

import pytest
import torch

from memseq.memories.gru import GRUConfig
from memseq.models.recoding import FixedStep, RecodingConfig
from memseq.models.stack import StackConfig
from memseq.recipes import recoding as recipe


def test_calibration_of_players_that_are_known():
    p = torch.full((1000, 2), 0.5)
    p[:, 0] = 0.75
    p[:, 1] = 0.25
    wanted = torch.zeros(1000, dtype=torch.int64)
    wanted[750:] = 1
    assert recipe.calibration(p, wanted) == pytest.approx(0.0, abs=1e-6)
    assert recipe.calibration(p, torch.zeros(1000, dtype=torch.int64)) == pytest.approx(0.25, abs=1e-6)


def test_another_step_keeps_the_weights_and_no_noise_loses_nothing():
    model = RecodingConfig(vocab_size=256, d_model=8, n_layers=1, step=FixedStep(alpha=0.0)).build().eval()
    other = recipe.with_step(model, 0.7)
    assert other.config.step == FixedStep(alpha=0.7)
    assert torch.equal(other.cells[0].w_x, model.cells[0].w_x)
    ids = torch.randint(256, (2000,))
    assert recipe.accident(model, ids, size=0.0) == 0.0


def test_the_table_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "STREAMS", 2)
    monkeypatch.setattr(recipe, "LENGTH", 8)
    path = tmp_path / "results.json"
    recipe.main(["--names", "no step,decoders 0.1,lstm", "--steps", "2", "--bytes", "8000", "--seeds", "1", "--json", str(path)])
    found = json.loads(path.read_text())["rows"]
    parts = [
        ("text, 2 steps", "no step"),
        ("accident, 2 steps", "no step"),
        ("text, 2 steps", "decoders, 0.1"),
        ("memories, 2 steps", "lstm"),
    ]
    assert [(row["part"], row["name"]) for row in found] == parts
    assert [(step["tokens"], step["alpha"]) for step in found[3]["steps_around"]] == [
        (n, a) for n in recipe.SEGMENTS for a in recipe.ALPHAS
    ]
    assert set(found[1]["bits_lost_by_alpha"]) == {"0", "0.1", "0.5", "2"}
    assert 6 < found[0]["bits_per_byte"] < 10


def test_steps_of_no_length_cost_and_save_nothing(monkeypatch):
    monkeypatch.setattr(recipe, "ALPHAS", (0.0,))
    model = StackConfig(vocab_size=256, d_model=8, layers=(GRUConfig(d_model=8),)).build().eval()
    found = recipe.repaired(model, torch.randint(256, (2000,)))
    assert [(step["costs"], step["saves"]) for step in found["steps_around"]] == 2 * [(0.0, 0.0)]
    assert found["bits_lost"] != 0.0


def test_claims_are_of_pairs_and_of_two_standard_deviations():
    def row(name, seed, bits):
        return {"part": "text", "name": name, "seed": seed, "bits_per_byte": bits}

    rows = [row("no step", 0, 3.5), row("no step", 1, 3.1), row("masks, 0.1", 0, 3.4), row("masks, 0.1", 1, 3.01)]
    rows += [row("decoders, 0.1", 0, 3.4), row("decoders, 0.1", 1, 3.2), row("surprisal, 0.1", 0, 3.0)]
    told = recipe.claims(rows)
    assert set(told) == {"text: masks, 0.1", "text: decoders, 0.1"}
    assert told["text: masks, 0.1"] == {"saved": 0.095, "sd": 0.0071, "seeds": 2, "ok": True}
    assert not told["text: decoders, 0.1"]["ok"]

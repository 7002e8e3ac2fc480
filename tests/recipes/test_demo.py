"""The demo, seconds long: everything that it prints was measured, and what it leaves can be used."""

import json
from pathlib import Path

import pytest

from memseq.cli import main
from memseq.errors import ConfigError
from memseq.models.presets import preset
from memseq.recipes import demo as recipe
from memseq.recipes.demo import Demo, demo, make_room, memformer, tell, without_slots
from memseq.recipes.fitting import weights_of


def test_both_models_are_of_the_same_size():
    assert weights_of(without_slots(memformer(256))) == pytest.approx(weights_of(memformer(256)), rel=2e-3)


def test_the_demo(tmp_path, capsys, monkeypatch):
    small = {"d_model": 16, "n_layers": 2, "n_heads": 2, "n_slots": 2}
    monkeypatch.setattr(recipe, "preset", lambda system, size, vocab_size: preset(system, size, vocab_size=vocab_size, **small))
    settings = Demo(minutes=0.01, recall_steps=4, asked=4, tokens=1500, lengths=(64, 256), sample=20, out=tmp_path / "demo")
    told = demo(settings, quiet=True)
    json.dumps(told, allow_nan=False)
    assert told["bits_per_byte"]["memory"] == pytest.approx(told["bits_per_byte"]["without memory"], rel=0.5)
    assert [set(row["accuracy"]) for row in told["recall"]] == 2 * [{"8", "16", "64"}]
    held = {(row["model"], row["length"]): row["state_bytes"] for row in told["streams"]}
    assert held["Memformer", 64] == held["Memformer", 256]
    assert held["Transformer with a cache", 256] > held["Transformer with a cache", 64]
    tell(settings, told)
    out = capsys.readouterr().out
    assert f"memseq eval {settings.out}" in out
    assert "guessing gives 6%" in " ".join(out.split())
    assert main(["generate", str(settings.out), "--prompt", "def ", "--tokens", "3"]) == 0
    assert main(["eval", str(settings.out), "--tokens", "300"]) == 0


def test_an_earlier_demo_makes_room_and_nothing_else_does(tmp_path):
    (tmp_path / "command.json").write_text(json.dumps({"system": "demo"}))
    make_room(tmp_path)
    assert not tmp_path.exists()
    mine = tmp_path.parent / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else than an earlier demo"):
        make_room(mine)
    assert Path(mine, "notes.txt").exists()

"""The recipes of RMT and of retrofitting: their plumbing on few steps, and what they call a claim."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memseq.recipes import retrofit, rmt


def test_every_row_of_recall_trains_and_is_asked(tmp_path, monkeypatch):
    rows = [replace(what, seconds=0.3, times=(1, 2)) for what in rmt.contenders()]
    monkeypatch.setattr(rmt, "contenders", lambda: rows)
    file = tmp_path / "rmt.json"
    rmt.main(["--json", str(file), "--seeds", "1"])
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == [what.name for what in rows]
    for row in result["rows"]:
        assert row["steps"] >= 1
        assert set(row["accuracy"]) == ({"8", "16"} if row["name"].endswith("up to 8") else {"4", "8"})
        assert all(0 <= share <= 1 for share in row["accuracy"].values())
    sizes = {row["name"]: row["parameters"] for row in result["rows"]}
    assert sizes["rmt"] - sizes["no memory"] == rmt.SLOTS * rmt.D  # one backbone, and the initial memory
    rmt.main(["--json", str(file), "--seeds", "1"])  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


def test_the_claim_of_recall_is_of_the_worst_seed():
    rows = [{"name": "rmt, noise 1", "seed": i, "accuracy": {"256": share}} for i, share in enumerate((0.99, 0.96, 0.94))]
    assert rmt.claims(rows)["rmt, noise 1, 256 segments"] == {"target": 0.95, "reached": 0.94, "seeds": 3, "ok": False}
    assert rmt.claims(rows[:2])["rmt, noise 1, 256 segments"]["ok"]


def test_the_questions_of_training_are_not_those_that_are_scored():
    train = rmt.question(4).sample(64, seed=4)
    test = rmt.question(4).sample(64, seed=4, split="test")
    assert not torch.equal(train.inputs, test.inputs)


def test_a_retrofit_is_compared_with_the_model_alone():
    row = {"seed": 0, "inside": 10.0, "beyond": 8.0, "anothers": 8.0}
    rows = [row | {"name": "alone"}, row | {"name": "rmt", "inside": 10.04, "beyond": 7.6}, row | {"name": "armt", "inside": 10.2}]
    rows.append(row | {"name": "a longer prompt", "beyond": 7.6, "anothers": 7.6})
    found = retrofit.claims(rows)
    assert found["rmt, seed 0"]["ok"]
    assert found["rmt, seed 0"]["beyond, of alone"] == 0.95
    assert not found["armt, seed 0"]["ok"]
    assert not found["a longer prompt, seed 0"]["ok"]  # better, but not by what it remembers


def novels_of(seed):
    """Tokens in the place of novels."""
    chance = np.random.default_rng(seed)
    return retrofit.Novels([chance.integers(3, 512, size=6000)], torch.from_numpy(chance.integers(3, 512, size=(2, 2 * retrofit.L + 1))))


def test_every_row_of_a_retrofit_trains_what_it_says(monkeypatch):
    monkeypatch.setattr(retrofit, "BATCH", 2)
    config = LlamaConfig(
        vocab_size=512, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=160
    )
    text, rows = novels_of(0), {}
    for what in retrofit.contenders():
        torch.manual_seed(0)
        hub = LlamaForCausalLM(config).eval()
        before = {name: p.detach().clone() for name, p in hub.named_parameters()}
        rows[what.name] = row = retrofit.run(what, hub, text, steps=2)
        moved = any(not torch.equal(p, before[name]) for name, p in hub.named_parameters() if name in before)
        assert moved == (what.learns == "all")
        if what.settings.get("begin") == "nothing" or what.system in ("armt", "hmt"):  # wrapping alone changes nothing inside a segment
            assert row["untrained"]["inside"] == pytest.approx(rows["alone"]["untrained"]["inside"], rel=1e-4)
        assert math.log(row["beyond"]) == pytest.approx(sum(row["nats_by_place"]) / retrofit.PLACES, abs=1e-3)
        assert math.log(row["beyond"]) == pytest.approx(sum(row["nats_by_segment"][1:]), abs=1e-3)  # two segments
        assert ("reads" in row) == (what.system == "armt")
        if what.learns == "memory":
            assert row["inside"] == row["untrained"]["inside"]
            assert row["learned_parameters"] == row["added_parameters"]
    assert rows["alone"]["beyond"] == rows["alone"]["anothers"]
    assert len({row["tokens"] for row in rows.values()}) == 1


def test_what_armt_reads_is_told_by_layer():
    """Values of zero add nothing and are met all the same; twice the values add twice as much."""
    sizes = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    hub, passages = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.5)), novels_of(0).passages
    model = retrofit.wrapped({what.name: what for what in retrofit.contenders()}["armt"], hub)
    nothing = retrofit.reads(model, passages)
    assert nothing["added"] == [0.0]
    assert nothing["met"][0] > 0
    torch.nn.init.normal_(model.associations[0].value.weight)
    once = retrofit.reads(model, passages)
    with torch.no_grad():
        model.associations[0].value.weight.mul_(2)
    assert retrofit.reads(model, passages)["added"][0] == pytest.approx(2 * once["added"][0], rel=1e-2)
    assert once["met"] == nothing["met"]


@pytest.mark.slow
def test_stories_with_a_memory_train_on_novels(data_dir, tmp_path):
    def args(steps):
        named = [word for name in ("alone", "armt") for word in ("--only", name)]
        return [str(data_dir), "--adapt", "8192", "--adapted", str(tmp_path / "w"), "--rows", "3", "--steps", steps, *named]

    file = tmp_path / "rows.json"
    retrofit.main([*args("2"), "--json", str(file)])
    result = json.loads(file.read_text())
    alone, armt = result["rows"]
    assert alone["untrained"] == armt["untrained"]
    assert armt["beyond"] != armt["anothers"]
    assert result["context"]["64"] < result["context"]["0"]

"""The recipe of a router that reads keys: states as large as it says, an agreement that is known where it can be, a short run."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.memories.keyed_mom import KeyedMoMConfig, KeyedMoMMemory
from memseq.memories.mom import MoMConfig
from memseq.models.stack import StackConfig
from memseq.recipes import keyed_mom
from memseq.recipes.capacity import VOCABULARY
from memseq.recipes.keyed_mom import agreement, claims, contenders, main, run


def test_states_are_compared_as_it_is_said():
    for part in ("pairs", "topics"):
        for what in contenders(part):
            state = what.memory.build().init_state(1)
            if isinstance(what.memory, KeyedMoMConfig | MoMConfig):
                assert state.M[0].numel() == 4096
                used = state.M[0, 0].numel() * what.memory.n_active
                assert used == {"one": 1024, "two": 2048}[what.name.split(", ")[1].split()[0]]
            else:
                assert f"{state.S.numel():,}" in what.name


def test_agreement_is_whole_where_one_memory_takes_all_and_none_where_two_are_apart(monkeypatch):
    memory = KeyedMoMConfig(d_model=16, n_heads=1, key_size=4, value_size=4)
    model = StackConfig(vocab_size=VOCABULARY, d_model=16, layers=(memory, memory)).build().eval()
    first, second = (block.memories[0] for block in model.blocks)
    honest = KeyedMoMMemory.routes

    def told(self, x, state):
        written, read = honest(self, x, state)
        place = torch.zeros(4, dtype=torch.bool)
        place[0] = True
        return place.expand_as(written), (place if self is first else place.roll(1)).expand_as(read)

    monkeypatch.setattr(KeyedMoMMemory, "routes", told)
    found = agreement(model, n=4, streams=2)
    assert found == {"agreement": [1.0, 0.0], "load": 2 * [[1.0, 0.0, 0.0, 0.0]]}
    assert second is not first


def test_all_memories_are_used_first(monkeypatch):
    used = []
    forward = KeyedMoMMemory.forward

    def listen(self, x, state):
        used.append(self.n_active)
        return forward(self, x, state)

    monkeypatch.setattr(KeyedMoMMemory, "forward", listen)
    what = next(what for what in contenders("topics") if what.name == "keyed_mom, one of four")
    run(replace(what, steps=5, questions=8, tokens=64), "topics", 0)
    assert used[:5] == [4, 4, 4, 1, 1]
    assert set(used[5:]) == {1}


def test_claims_are_means_over_seeds():
    def rows(name, *accuracies):
        return [{"part": "pairs", "name": name, "seed": i, "accuracy": {"24": a, "32": a, "48": a}} for i, a in enumerate(accuracies)]

    topics = [{"part": "topics", "name": "keyed_mom, one of four", "seed": 0, "accuracy": {"1": 1.0, "4": 0.9}}]
    found = claims([*rows("keyed_mom, one of four", 0.8, 0.9), *rows("gated_deltanet, 1,024", 0.86), *topics])
    assert found["24 pairs, one of four: 1 of 1,024"] == {"target": 0.86, "reached": pytest.approx(0.85), "ok": False}
    assert found["four topics, keyed_mom, one of four loses"] == {"target": "at most 5 points", "reached": 10.0, "ok": False}
    assert len(found) == 4
    unlearned = claims([topics[0] | {"accuracy": {"1": 0.2, "4": 0.18}}])
    assert not unlearned  # nothing to lose is no claim


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    short = {part: [replace(what, steps=2, questions=8, tokens=64) for what in contenders(part)[:4:3]] for part in ("pairs", "topics")}
    monkeypatch.setattr(keyed_mom, "contenders", short.__getitem__)
    monkeypatch.setattr(keyed_mom, "ASKED", (1, 24, 32, 48))
    path = tmp_path / "rows.json"
    for part in ("pairs", "topics", "pairs"):
        main(["--part", part, "--seeds", "1", "--json", str(path)])
    told = json.loads(path.read_text())
    assert [(row["part"], row["name"]) for row in told["rows"]] == [(part, what.name) for part in short for what in short[part]]
    assert "agreement" in told["rows"][1]
    assert "agreement" not in told["rows"][0]
    assert capsys.readouterr().out.count("\n") == 4

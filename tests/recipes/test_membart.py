"""MemBART's claim: what its recipe reads and counts, and that every row trains and is asked."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from memseq.recipes import membart


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return membart.bart().state_dict()


@torch.no_grad()
@pytest.mark.parametrize("name", ["last turn", "nine turns"])
def test_rows_without_slots_are_the_network_on_the_turns_it_reads(weights, name):
    model, network = membart.wrapped(name, weights).eval(), membart.bart().eval()
    network.load_state_dict(weights)
    inputs = replace(membart.TASK, n_turns=12).sample(3, 0).inputs
    said = membart.answers(model, inputs)
    for turn in range(12):
        seen = inputs[:, max(0, turn + 1 - membart.READ[name]) * membart.U : (turn + 1) * membart.U]
        torch.testing.assert_close(said[:, turn], membart.read_at_once(network, seen), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_slots_know_earlier_turns_and_later_ones_change_nothing(weights):
    inputs = replace(membart.TASK, n_turns=6).sample(1, 0).inputs
    other = inputs.clone()
    other[:, : membart.U] = replace(membart.TASK, n_turns=1).sample(1, 1).inputs
    for name, told in (("membart", True), ("last turn", False)):
        model = membart.wrapped(name, weights).eval()
        a, b = membart.answers(model, inputs), membart.answers(model, other)
        assert bool((a[:, 1:] - b[:, 1:]).abs().amax() > 1e-4) == told
        first = membart.answers(model, inputs[:, : 3 * membart.U])
        torch.testing.assert_close(first, a[:, :3])
        torch.testing.assert_close(membart.answers(model, inputs, range(2, 4)), a[:, 2:4])


def test_accuracy_is_by_age_and_counts_the_last_turns(weights, monkeypatch):
    """A player that reads two turns back is right about them alone, wherever the dialogue ends."""
    task = replace(membart.TASK, n_turns=20)

    def player(model, inputs, turns):
        said = task.reading(inputs, 2)[:, membart.U - 1 :: membart.U][:, turns]
        return torch.nn.functional.one_hot(said, task.vocab_size).float()

    monkeypatch.setattr(membart, "answers", player)
    found = membart.accuracy(membart.wrapped("last turn", weights), 20, 300)
    assert [found[age] for age in ("0", "1")] == [1, 1]
    assert max(abs(found[str(age)] - task.chance) for age in range(2, 9)) < 0.09


def test_every_row_trains_is_asked_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(membart, "ASKED", (12,))
    monkeypatch.setattr(membart, "cost", lambda: membart_cost)
    membart_cost = {"membart": {"last_over_first": 1.01}}
    file = tmp_path / "rows.json"
    arguments = ["--seconds", "0.05", "--pretraining", "0.05", "--seeds", "1", "--asked", "8", "--json", str(file)]
    membart.main(arguments)
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == ["cost", *membart.READ]
    for row in result["rows"][1:]:
        assert set(row["accuracy"]["12"]) == {str(age) for age in range(9)}
        assert row["tokens_a_turn"] == membart.U * membart.READ[row["name"]]
    assert result["claims"]["cost of a late turn"]["reached"] == 0.01
    assert result["claims"]["cost of a late turn"]["ok"]
    reached = result["rows"][1]["accuracy"]["12"]
    mean = sum(value for age, value in reached.items() if age != "0") / 8
    assert result["claims"]["1 to 8 turns beyond"]["reached"] == pytest.approx(mean, abs=1e-4)
    membart.main(arguments)  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


@torch.no_grad()
def test_the_share_of_values_is_one_where_keys_are_not_read(weights):
    model = membart.wrapped("last turn", weights).eval()
    assert all(0 < share < 0.3 for share in membart.value_shares(model))  # 1/12 where every fact is a vector of its own
    facts = model.embedding.weight[: membart.TASK.questions].view(membart.TASK.n_keys, membart.TASK.n_values, -1)
    facts.copy_(facts[:1].expand_as(facts).clone())  # all facts of a value are one
    assert membart.value_shares(model) == pytest.approx([1.0, 1.0], abs=1e-3)


def test_cost_has_a_time_for_every_quarter():
    table = membart.cost(n_turns=8, rows=1, repeats=1)
    for name in ("membart", "all turns anew"):
        assert len(table[name]["ms_a_turn_by_quarter"]) == 4
        assert min(table[name]["ms_a_turn_by_quarter"]) > 0

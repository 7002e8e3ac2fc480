"""The recipe of time constants: what it asks is what it says, on networks whose answers are known."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from memseq.memories.timescales import LeakyNetworkConfig
from memseq.recipes import timescales as recipe
from memseq.tasks.bits import ParityTask


def shift_register(size):
    """Unit 0 holds the last bit, unit i the bit before unit i - 1's: a ReLU network at tau = 1 whose parity of two can be read."""
    model = recipe.Headed(LeakyNetworkConfig(d_model=1, hidden_size=size + 2, activation="relu", taus=(1.0, 1.0), train_tau=False))
    cell = model.memory.cell
    with torch.no_grad():
        for w in (cell.w_x, cell.w_r, cell.b):
            w.zero_()
        cell.w_x[0] = 1.0
        for i in range(1, size + 2):
            cell.w_r[i, i - 1] = 1.0
    return model


@pytest.mark.parametrize("n", range(2, 13))
def test_parity_at_every_token_is_the_tasks(n):
    bits = recipe.fair(n, streams=3, length=40)
    found = recipe.parity(bits, n)
    for t in range(n - 1, 40):
        assert torch.equal(found[:, t], ParityTask(n_bits=2, most=12).heads(bits[:, : t + 1], [n])[:, 0])


def test_rows_are_as_long_as_the_source_says():
    generator = torch.Generator().manual_seed(0)
    lengths = {recipe.drawn(3, 2, generator).shape[1] for _ in range(300)}
    assert lengths == set(range(5, 14))


def test_what_states_hold_linearly_is_read_anew_and_what_they_do_not_is_not():
    model, bits = shift_register(3), recipe.fair(0)
    states = model.states(bits)
    assert torch.equal(states[:, 3:, 2], bits[:, 1:-2].float())
    assert recipe.read_anew(model, 1, bits) == 1.0
    assert recipe.read_anew(model, 3, bits) < 0.8  # the bits are there; a line agrees with their parity on 6 of 8 patterns at most


def test_a_unit_that_matters_is_found_by_ablation_and_by_no_other():
    model = shift_register(3)
    head = model.head(1)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.5, 0.0]))
        head.weight[1, 0] = 1.0  # says the last bit, its own parity of one
    bits = recipe.fair(1)
    assert recipe.accuracy(model, 1, bits) == 1.0
    assert recipe.ablation(model, 1, torch.tensor([0]), bits) == pytest.approx(0.5, abs=0.05)
    assert recipe.ablation(model, 1, torch.tensor([1, 2, 3]), bits) == 1.0
    assert recipe.accuracy(model, 1, bits) == 1.0  # the network itself stays whole


def test_the_push_at_which_half_is_left():
    assert recipe.half_of(np.array([0.1, 1.0, 10.0]), [1.0, 1.0, 0.5], 1.0) == pytest.approx(10**0.5, rel=1e-3)
    assert recipe.half_of(np.array([0.1, 1.0]), [1.0, 0.9], 1.0) is None


def test_curricula_keep_a_head_or_all_and_the_table_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "PASS", 0.2)
    monkeypatch.setattr(recipe, "CHECKED", 1)
    monkeypatch.setitem(recipe.NETWORKS, "leaky", LeakyNetworkConfig(d_model=1, hidden_size=10))
    monkeypatch.setattr(recipe, "WARM", 10)
    monkeypatch.setattr(recipe, "ASKED", 40)
    path = tmp_path / "results.json"
    recipe.main(["--until", "4", "--steps", "3", "--seeds", "1", "--json", str(path)])
    rows = {row["part"]: row for row in json.loads(path.read_text())["rows"]}
    assert set(rows) == {"multi", "single"}
    for row in rows.values():
        assert row["mastered_at"] == {"2": 1, "3": 2, "4": 3}
        assert set(row["own_heads"]) == {"2", "3", "4"}
        assert {"mean_tau", "fast_ablated", "slow_ablated", "pushed", "read_anew_N_minus_2"} <= set(row)


def test_a_single_head_is_trained_alone():
    torch.manual_seed(0)
    model, _ = recipe.master(LeakyNetworkConfig(d_model=1, hidden_size=6), "single", steps=2, until=4, seed=0)
    assert isinstance(model.head(2), nn.Linear)
    assert len(model.heads) == 1  # nothing was mastered in two steps


def test_what_is_studied_is_the_network_that_mastered_its_last_size(monkeypatch):
    exams = iter([1.0, 0.0, 0.0])
    monkeypatch.setattr(recipe, "CHECKED", 1)
    monkeypatch.setattr(recipe, "exam", lambda model, sizes, generator: [next(exams)])
    config = LeakyNetworkConfig(d_model=1, hidden_size=6)
    model, mastered = recipe.master(config, "single", steps=3, until=4, seed=0)
    monkeypatch.setattr(recipe, "exam", lambda model, sizes, generator: [0.0])
    other, nothing = recipe.master(config, "single", steps=1, until=4, seed=0)
    assert mastered == {2: 1}
    assert nothing == {}
    assert torch.equal(model.memory.cell.w_r, other.memory.cell.w_r)  # after one step, not after three

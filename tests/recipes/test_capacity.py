"""The recipe of capacity: states as large as it says, laws that are found again, and a short run that is complete and resumes."""

import json
import math
from dataclasses import replace

import pytest
import torch

from memseq.recipes import capacity
from memseq.recipes.capacity import KINDS, PairsRun, PasskeyRun, held, law, laws, longest, main, model_of, pairs_runs, slowed


@pytest.mark.parametrize("kind", KINDS)
def test_one_matrix_is_all_that_is_carried(kind):
    state = model_of(PairsRun(kind=kind, state_size=8)).init_state(1)
    assert len(state.layers) == 1
    matrix = state.layers[0][0][0]
    assert matrix.numel() == 8 * 128


def test_slow_gates_forget_more_slowly_and_nothing_else():
    torch.manual_seed(0)
    usual = model_of(PairsRun(kind="mamba2, usual gates", state_size=4))
    torch.manual_seed(0)
    slow = model_of(PairsRun(kind="mamba2, slow gates", state_size=4))
    at = torch.zeros(1, 1, 4)
    kept = [model.blocks[0].memories[0].gate(at)[1] for model in (usual, slow)]
    assert torch.allclose(kept[1], kept[0] * math.exp(-capacity.SLOW), rtol=1e-4)
    slowed(slow, -capacity.SLOW)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(usual.parameters(), slow.parameters(), strict=True))


def test_what_is_held_is_where_the_line_is_crossed():
    assert held({"1": 1.0, "2": 0.97, "4": 0.93, "8": 1.0}) == pytest.approx(3.0)
    assert held({"1": 0.9, "2": 1.0}) == 0
    assert held({"1": 1.0, "2": 1.0}) == 2
    assert longest({"2": 1.0, "4": 0.96, "8": 0.9, "16": 1.0}) == 48
    assert longest({"2": 0.5}) == 0


def test_the_law_is_found_again():
    found = law([(n, round(2 ** (3 + 0.25 * n))) for n in (4, 8, 16, 32)])
    assert (found["exponential"]["a"], found["exponential"]["b"]) == pytest.approx((3, 0.25), abs=1e-3)
    assert found["power"]["rms_in_doublings"] > 10 * found["exponential"]["rms_in_doublings"]
    rows = [{"part": "pairs", "kind": "deltanet", "state_size": n, "held": 1.5 * n} for n in (4, 8, 16)]
    found = laws([*rows, {"part": "passkey", "state_size": 4, "longest": 0}])
    assert set(found) == {"deltanet"}
    assert (found["deltanet"]["power"]["a"], found["deltanet"]["power"]["b"]) == pytest.approx((math.log2(1.5), 1.0), abs=1e-3)
    assert law([(4, 0), (8, 3)]) == {}


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    short = [replace(what, steps=2, questions=8) for what in pairs_runs() if what.state_size == 4]
    monkeypatch.setattr(capacity, "pairs_runs", lambda: short)
    monkeypatch.setattr(capacity, "passkey_runs", lambda: [PasskeyRun(state_size=4, steps=2, asked=4)])
    monkeypatch.setattr(capacity, "ASKED", (1, 2))
    monkeypatch.setattr(capacity, "TAUGHT", (1, 2))
    monkeypatch.setattr(capacity, "LENGTHS", (2, 4))
    path = tmp_path / "rows.json"
    for part in ("pairs", "passkey", "pairs"):
        main(["--part", part, "--seeds", "1", "--json", str(path)])
    told = json.loads(path.read_text())
    assert [row["part"] for row in told["rows"]] == ["pairs", "pairs", "pairs", "passkey"]
    assert [row["name"] for row in told["rows"][:3]] == [f"{kind}, N=4" for kind in KINDS]
    assert all(row["bits"] == pytest.approx(row["held"] * math.log2(80), abs=0.05) for row in told["rows"][:3])
    assert capsys.readouterr().out.count("\n") == 4

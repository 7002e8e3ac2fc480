"""The recipe of state collapse: what it compares is as it says, its measures are exact, and a short run is complete and resumes."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.memories.stuffed_mamba import Scaled, Windowed
from memseq.recipes import stuffed_mamba
from memseq.recipes.stuffed_mamba import ForgetRun, config_of, forget_runs, main, read_on, repaired, retention, size_runs, stream, train

SHORT = ForgetRun(steps=(1, 1, 2), read=128, streams=2, mend=True)


@pytest.fixture(scope="module")
def model():
    return train(SHORT, seed=0)[0]


def test_repairs_that_change_nothing_leave_the_loss_as_it_is(model):
    base = read_on(model, tokens=128, streams=2)
    for repair in (Scaled(retain=1.0), Windowed(window=128)):
        assert read_on(repaired(model, repair, 64), tokens=128, streams=2)["within"] == base["within"]
    assert [row["to"] for row in base["by_place"]] == [32, 64, 128]
    assert base["rise"] == pytest.approx(base["beyond"] - base["within"], abs=1e-4)


def test_a_calibrated_limit_holds_the_norms(model):
    repair, share = stuffed_mamba.REPAIRS["limit 0.5, every 16"]
    limited = repaired(model, (repair, share), 64)
    norms = read_on(limited, tokens=128, streams=2)["by_place"][-1]["norms"]
    most = [block.memories[0].largest.tolist() for block in limited.blocks]
    assert all(n <= 1.001 * p for layer, limits in zip(norms, most, strict=True) for n, p in zip(layer, limits, strict=True))


def test_slow_gates_retain_and_retention_is_the_product_of_gates(model):
    usual = config_of(16, stream(4, 2).vocab_size).build()
    with torch.no_grad():
        for block in usual.blocks:
            block.memories[0].inputs.weight.zero_()  # gates of every token alike
    gate = usual.blocks[0].memories[0].gate
    each = gate(torch.zeros(1, 1, 4))[1][0, 0].double()
    assert retention(usual, 64)[0] == pytest.approx((64 * each).exp().tolist(), abs=6e-4)
    assert min(min(layer) for layer in retention(model, 64)) > 0.8


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stuffed_mamba, "REPAIRS", {"window": Windowed(window=32)})
    monkeypatch.setattr(stuffed_mamba, "forget_runs", lambda: [SHORT, replace(SHORT, carried=True, mend=False)])
    monkeypatch.setattr(stuffed_mamba, "size_runs", lambda: [replace(SHORT, state_size=4, mend=False)])
    path = tmp_path / "rows.json"
    for part in ("forget", "sizes", "forget"):
        main(["--part", part, "--seeds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["part"] for row in rows] == ["forget", "repairs", "forget", "forget"]
    assert rows[1]["of"] == rows[0]["name"]
    assert "carried" in rows[2]["name"]
    assert capsys.readouterr().out.count("\n") == 4


def test_sizes_are_rows_of_their_own():
    assert {what.name for what in size_runs()}.isdisjoint({what.name for what in forget_runs()})

"""The recipe of notes: equal weights and bytes as it says, fidelities that are exact where they can be known, a short run that resumes."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import memmamba
from memseq.recipes.capacity import passkey
from memseq.recipes.fitting import weights_of
from memseq.recipes.memmamba import contenders, fidelity, main, noting, plain, written
from memseq.state import state_bytes


def test_rows_have_equal_weights_or_bytes():
    rows = {what.name: what.model for what in contenders()}
    n, held = weights_of(noting()), state_bytes(noting().build().init_state(1))
    assert all(abs(weights_of(model) / n - 1) < 0.01 for name, model in rows.items() if not name.endswith(("bytes", "32 notes")))
    bytes_of = {name: state_bytes(model.build().init_state(1)) for name, model in rows.items()}
    assert held <= bytes_of["mamba2, bytes"] < 1.2 * held
    assert bytes_of["mamba2, bytes"] - state_bytes(plain(rows["mamba2, bytes"].layer.state_size - 1).build().init_state(1)) > 0
    assert not rows["no own notes"].own
    assert rows["no notes of below"].below_every is None
    assert rows["choice not learned"].select == "frozen"
    for name in ("mamba2, weights", "mamba2, bytes", "memmamba"):
        assert rows[f"long, {name}"] == rows[name]


def test_fidelity_is_one_for_a_model_that_says_what_is_asked(monkeypatch):
    model = plain(2).build().eval()
    asked = [passkey(n).sample(4, seed=n, split="test") for n in (2, 8, 32, 128)]

    def knowing(tokens, state):
        T = tokens.shape[1]
        labels = next(b.labels[:, -T:] for b in asked if torch.equal(b.inputs[:, -T:], tokens))
        return 1e4 * torch.nn.functional.one_hot(labels.clamp(min=0), model.vocab_size).float(), state

    honest = model.forward
    monkeypatch.setattr(model, "forward", lambda tokens, state: (honest if len(tokens) == 8 else knowing)(tokens, state))
    found = fidelity(model, streams=4)
    assert [row["tokens"] for row in found["etmf"]] == [24, 96, 384, 1536]
    assert all(row["etmf"] == pytest.approx(1.0, abs=1e-4) for row in found["etmf"])
    assert all(row["floor"] < 0.7 for row in found["etmf"])
    assert 0 <= found["eclmf_r"]["2"] < 0.9
    for layer in model.layers:
        torch.nn.init.zeros_(layer.out.weight)  # layers that add nothing
    assert fidelity(model, streams=4)["eclmf_r"] == {"1": pytest.approx(1.0, abs=1e-3), "2": pytest.approx(1.0, abs=1e-3)}


def test_notes_are_counted_by_what_they_are_of():
    model = noting().build().eval()
    with torch.no_grad():
        for writer in model.writers:
            writer.worth.weight.zero_()
            writer.worth.bias.fill_(1.0)
        model.writers[1].worth.bias.fill_(-1.0)
    assert written(model) == [{"symbols": 1.0, "noise": 1.0}, {"symbols": 0.0, "noise": 0.0}]
    with torch.no_grad():
        model.embedding.weight[:, 0] = torch.where(torch.arange(model.vocab_size) < 16, 1.0, -1.0)
        model.writers[0].worth.weight[:, 0], model.writers[0].worth.bias[:] = 1.0, 0.0
    assert written(model)[0] == {"symbols": 1.0, "noise": 0.0}


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    short = [replace(what, steps=2, asked=4, stages=what.stages[:2]) for what in contenders()[::3]]
    monkeypatch.setattr(memmamba, "contenders", lambda: short)
    monkeypatch.setattr(memmamba, "LENGTHS", (2, 4))
    path = tmp_path / "rows.json"
    main(["--seeds", "1", "--json", str(path)])
    main(["--seeds", "1", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == [what.name for what in short]
    assert all(set(row["accuracy"]) <= {"2", "4"} and row["longest"] in (0, 24, 48) for row in rows)
    assert capsys.readouterr().out.count("\n") == len(short)

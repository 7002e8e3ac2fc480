"""The recipe of reading twice: its rows are what they say, a short training runs and resumes, and the untrained table is the known one."""

import json
from dataclasses import replace

import torch
from torch.testing import assert_close

from memseq.models.jrt_rnn import JRTRNNLM
from memseq.recipes.jrt import accuracies, claims, contenders, logits_of, main, orders, run, untrained
from memseq.state import state_bytes


def test_a_second_reading_halves_the_error_of_the_delta_rule_where_there_is_room():
    rows = {(row["rule"], row["pairs"]): (row["once"], row["twice"]) for row in untrained((16, 64), seeds=10)}
    for found, known in zip((*rows["delta", 16], *rows["delta", 64]), (0.293, 0.108, 1.036, 0.982), strict=True):
        assert abs(found - known) < 0.06
    assert rows["sum", 16][1] > 4 * rows["sum", 16][0]  # a sum read twice is twice the sum


def test_rows_have_equal_states_where_they_are_compared():
    wanted = {what.name: what for what in contenders()}
    bytes_of = {name: state_bytes(what.model.build().init_state(1)) for name, what in wanted.items()}
    assert bytes_of["based"] == bytes_of["jrt_rnn"] == bytes_of["based, reading twice"]
    assert abs(bytes_of["gated_deltanet"] / bytes_of["based"] - 1) < 0.6
    once, twice = orders()["short first"], orders(2)["short first"]
    assert twice.length - 1 == 2 * (once.length - 1)


def test_a_model_with_a_prefix_is_asked_after_all_of_it():
    what = next(what for what in contenders() if what.name == "jrt_rnn")
    model = what.model.build()
    assert isinstance(model, JRTRNNLM)
    inputs = what.tasks["short first"].sample(3, 0).inputs
    _, state = model.read_prefix(inputs[:, :-1], model.init_state(3))
    assert_close(logits_of(model, inputs)[:, -1], model(inputs[:, -1:], state)[0][:, 0])


def test_a_short_run_is_complete_and_resumes(tmp_path, capsys, monkeypatch):
    short = [replace(what, steps=2, asked=8, batch_size=4) for what in contenders()]
    monkeypatch.setattr("memseq.recipes.jrt.contenders", lambda: short)
    monkeypatch.setattr("memseq.recipes.jrt.untrained", list)
    path = tmp_path / "jrt.json"
    main(["--json", str(path), "--only", "mqar"])
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["mqar, based"]
    main(["--json", str(path)])
    result = json.loads(path.read_text())
    assert sorted(row["name"] for row in result["rows"]) == sorted(what.name for what in short)
    assert set(result["claims"]) == set(claims(result["rows"]))
    assert all(set(row["accuracy"]) == set(what.tasks) for what in short for row in result["rows"] if row["name"] == what.name)
    assert "mqar" in capsys.readouterr().out


def test_a_seed_is_a_result():
    what = replace(contenders()[0], steps=2, asked=16, batch_size=4)
    first, second = run(what, seed=3), run(what, seed=3)
    assert first["accuracy"] == second["accuracy"]
    torch.manual_seed(0)
    model = what.model.build()
    assert set(accuracies(model, what.tasks, rows=8)) == {"short first", "long first"}

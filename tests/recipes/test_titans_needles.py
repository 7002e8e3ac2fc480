"""The plumbing of the needles: a text has one right answer, the first stage asks what was read, contenders hold as much, rows are kept."""

import json
from dataclasses import replace
from random import Random

import torch

from memseq.recipes import titans_needles as recipe
from memseq.tasks.task import IGNORE


def test_the_answer_is_what_stood_after_the_key():
    for task in recipe.asked(128).values():
        batch = task.sample(8, seed=0)
        asked = batch.labels != IGNORE
        assert batch.inputs.shape == (8, 127)
        assert torch.equal(task.oracle(batch.inputs)[asked], batch.labels[asked])
        text = bytes(batch.inputs[0].tolist()).decode()
        (answer,) = task.answer_in(text[: text.rindex(":") + 1])
        assert text.count(f": {answer}") == 2  # the needle's, and that of the answer


def test_numbers_have_as_many_digits_as_they_are_asked_to():
    lengths = [{len(task._value(Random(i))) for i in range(40)} for task in recipe.kinds(128, (2, 4)).values()]
    assert lengths[:2] == [{2, 3, 4}] * 2
    assert {len(recipe.asked(128)["short"]._value(Random(i))) for i in range(9)} == {3}
    assert {stage.digits[1] for stage in recipe.PARTS["practised"]} == {7}


def test_a_repeated_line_asks_what_was_read_before():
    batch = recipe.RepeatedLineTask(n_chars=90).sample(6, seed=1)
    for tokens, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        first = next(i for i, label in enumerate(labels) if label != IGNORE) + 1  # bytes of the line
        assert bytes(tokens[first - 2 : first]) == b". "
        assert labels[first - 1 :] == (tokens * 2)[: len(labels) - first + 1]


def test_of_repeated_values_nothing_else_is_asked():
    batch = recipe.RepeatedValueTask(n_chars=60, digits=(2, 4)).sample(9, seed=1)
    for tokens, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        text, said = bytes(tokens).decode(), "".join(chr(label) if label != IGNORE else " " for label in labels).split()
        value = text[text.index(": ") + 2 : text.index(".")]
        assert said[0] == value
        assert all(value.startswith(again) for again in said)


def test_repeated_digits_are_all_asked_but_the_first():
    batch = recipe.RepeatedDigitsTask(n_chars=30).sample(5, seed=1)
    for tokens, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        first = next(i for i, label in enumerate(labels) if label != IGNORE) + 1
        assert 4 <= first <= 10
        assert bytes(tokens).isdigit()
        assert labels[first - 1 :] == (tokens * 2)[: len(labels) - first + 1]


def test_every_contender_is_trained_and_asked_and_rows_are_kept(monkeypatch, tmp_path):
    few = {
        "stages": (
            recipe.Stage(1, "digits", 20),
            recipe.Stage(2, "values", 70, practice=2),
            recipe.Stage(1, "lines", 70),
            recipe.Stage(1, "needles", 70, (2, 3)),
        ),
        "batch_size": 2,
        "asked": 2,
        "lengths": (70, 100),
    }
    rows = {what.name: recipe.run(replace(what, **few)) for what in recipe.contenders()}
    assert all(row["right"].keys() == {"70", "100"} for row in rows.values())
    plain = [row["state_bytes"] for name, row in rows.items() if name != "Titans MAG"]
    assert max(plain) < 1.06 * min(plain)
    done = []
    monkeypatch.setattr(recipe, "run", lambda what, seed: done.append(what.name) or {"name": what.name, "seed": seed})
    path = tmp_path / "rows.json"
    for only in ("LMM", "Titans"):
        recipe.main(["--seeds", "3", "--only", only, "--json", str(path)])
    assert done == ["Titans LMM", "Titans MAG"]
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == done
    recipe.main(["--seeds", "3", "--only", "LMM", "--part", "practised", "--json", str(path)])
    assert [(row["part"], row["name"]) for row in json.loads(path.read_text())["rows"]][-1] == ("practised", "Titans LMM")

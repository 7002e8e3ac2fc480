"""The comparison of segment memories: its plumbing on few steps, and that its rows are comparable."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import segments


@pytest.mark.parametrize("name", segments.PARTS)
def test_every_row_trains_is_asked_and_kept(tmp_path, monkeypatch, name):
    part = replace(segments.PARTS[name], asked=(4, 8))
    monkeypatch.setitem(segments.PARTS, name, part)
    file = tmp_path / "segments.json"
    arguments = ["--part", name, "--json", str(file), "--steps", "1", "--seeds", "1", "--questions", "4"]
    segments.main(arguments)
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == list(segments.contenders(part))
    for row in result["rows"]:
        assert row["part"] == name
        assert set(row["accuracy"]) == set(row["exact"]) == {"4", "8"}
        assert abs(row["parameters"] / segments.WEIGHTS - 1) < 0.01
        if row["name"] == "no memory" or row["name"].endswith((", 8", ", 24")):
            continue  # another state, as its name says
        assert abs(row["state_bytes"] / segments.BYTES - 1) < 0.06, row["name"]
    segments.main(arguments)  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]


@pytest.mark.parametrize("part", segments.PARTS.values(), ids=segments.PARTS)
def test_the_question_stands_in_the_last_segment(part):
    task = part.ask(5)
    assert task.length == 5 * part.length
    *before, last = task.sample(20, 0).segments(part.length)
    assert all(int((segment.targets >= 0).sum()) == 0 for segment in before)
    assert bool((last.targets >= 0).any(1).all())


def test_right_counts_tokens_and_whole_texts():
    task = segments.passkey(3)
    batch = task.sample(40, 0)

    class Player:
        """Says the answers, but the last digit of every fourth text."""

        def init_state(self, batch_size):
            return 0

        def advance(self, tokens, state):
            return state + 1

        def __call__(self, tokens, state):
            assert state == 2
            said = task.oracle(batch.inputs)[:, -tokens.shape[1] :]
            said[::4, -1] = (said[::4, -1] + 1) % 10
            return torch.nn.functional.one_hot(said, task.vocab_size), state

    assert segments.right(Player(), batch, 24) == {"accuracy": 0.95, "exact": 0.75}

"""HMT's claim: what its recipe asks, teaches and counts, and that every row trains and is asked."""

import json
from dataclasses import replace

import pytest
import torch

from memseq.recipes import hmt


@pytest.fixture(params=[name for name in hmt.rows() if name.startswith("hmt")])
def row(request):
    return hmt.rows()[request.param]


@torch.no_grad()
def test_a_recall_that_knows_scores_in_the_map_and_one_that_does_not_guesses(row, monkeypatch):
    """With weights put by hand on the segment that told, and on the one behind it, the map is 1 and 0."""
    torch.manual_seed(0)
    model = replace(row.model, n_kept=10).build().eval()  # fewer than segments: the first are no longer there to be recalled
    task = hmt.topics(8, row)
    batch = task.sample(8, 0)
    told = batch.slices["told_in"].unflatten(1, (-1, task.segment_length))[:, task.asking].amax(2)
    first = (torch.tensor(task.asking) - 10).clamp_min(0)
    for shift, expected in ((0, (told >= first).float().mean()), (1, 0.0)):
        asked = iter((told - first)[:, i] + shift for i in range(len(task.asking)))
        weights = lambda about, state, asked=asked: torch.zeros(8, 11).scatter(1, next(asked).clamp(0, 10)[:, None], 1.0)  # noqa: E731
        monkeypatch.setattr(hmt, "recalled", lambda model, about, state, w=weights: w(about, state)[:, : int(state.count.max())])
        assert hmt.scores(model, task, batch)["recall_map"] == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_the_weights_are_those_of_the_recall_that_the_segment_reads(row):
    torch.manual_seed(0)
    model, task = row.model.build().eval(), hmt.topics(4, row)
    batch = task.sample(3, 0)
    pieces = batch.segments(task.segment_length)
    state = model.init_state(3)
    for number, (piece, before, about) in zip(task.asking, hmt.asked_segments(model, task, batch), strict=True):
        while int(state.count[0]) < number:
            state = model.advance(pieces[int(state.count[0])].tokens, state)
        torch.testing.assert_close(before.kept, state.kept)
        assert torch.equal(piece.tokens, pieces[number].tokens)
        mixture = (hmt.recalled(model, about, state)[:, None] @ state.kept[:, -number:])[:, 0]
        torch.testing.assert_close(mixture, state.recalled if model.causal else model._recall(state, piece.tokens[:, : model.summarised]))


def test_the_loss_is_that_of_the_answers_and_teaching_adds_the_telling_segment(row):
    torch.manual_seed(0)
    model, task = row.model.build(), hmt.topics(4, row)
    batch = task.sample(5, 0)
    total, nats = hmt.loss(model, task, batch, 0.0)
    logits = model(batch.inputs, model.init_state(5))[0]
    torch.testing.assert_close(nats, torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()).detach())
    torch.testing.assert_close(total.detach(), nats)
    taught = hmt.loss(model, task, batch, 0.5)[0] - total
    told = batch.slices["told_in"].unflatten(1, (-1, task.segment_length))[:, task.asking].amax(2)
    by_hand = [
        -hmt.recalled(model, about, state).gather(1, told[:, i, None]).log().mean()
        for i, (_, state, about) in enumerate(hmt.asked_segments(model, task, batch))
    ]
    torch.testing.assert_close(taught, 0.5 * torch.stack(by_hand).mean())


def test_states_of_hmt_and_of_rmt_with_16_vectors_are_as_large():
    size = {name: hmt.state_at_border(row.model.build()) for name, row in hmt.rows().items()}
    counts = 500  # of positions, and of tokens on the host
    assert all(0 <= size[name] - 4 * hmt.KEPT * hmt.D < counts for name in size if "1 vector" not in name)
    assert size["rmt, 1 vector"] < 4 * hmt.D + counts


def test_every_row_trains_is_asked_and_kept(tmp_path):
    file = tmp_path / "rows.json"
    arguments = ["--seconds", "0.05", "--seeds", "1", "--asked", "2", "--json", str(file)]
    hmt.main(arguments)
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == list(hmt.rows())
    for row in result["rows"]:
        assert set(row["accuracy"]) == {str(n) for n in hmt.ASKED}
        assert ("recall_map" in row) == row["name"].startswith("hmt")
    assert result["claims"]["hmt"]["seeds"] == 1
    assert result["claims"]["rmt, 1 vector"]["reached"] == max(row["accuracy"]["8"] for row in result["rows"] if "1 vector" in row["name"])
    hmt.main(arguments)  # all rows are there: nothing is run again
    assert json.loads(file.read_text())["rows"] == result["rows"]

"""The recipe of forecasts: readers are causal and of one size, and errors are what they are said to be."""

import json

import pytest
import torch
from torch.testing import assert_close

from memseq.memories.aaren import AarenConfig
from memseq.recipes import forecasting
from memseq.recipes.fitting import weights
from memseq.recipes.forecasting import CONTEXT, HORIZON, PATCH, Reader, SeriesReader, errors_of, forecast, readers, without_learning
from memseq.tasks.series import Forecasts


def toy_ett() -> Forecasts:
    hours = torch.arange(400.0)[:, None] / 24 * torch.tensor([1.0, 2.0])
    return Forecasts((6.28 * hours).sin(), (6.28 * hours[:200]).sin(), (6.28 * hours[:200]).cos())


def test_readers_are_of_one_size():
    sizes = [weights(SeriesReader(r.memory, channels=PATCH, outputs=HORIZON, context=12, ff_mult=r.ff_mult)) for r in readers()]
    assert max(sizes) < 1.03 * min(sizes)


def test_a_reader_of_series_is_causal_so_that_what_lies_behind_an_end_is_not_seen() -> None:
    reader = SeriesReader(AarenConfig(d_model=8, n_heads=2), channels=3, outputs=2, context=9)
    x = torch.randn(2, 9, 3)
    y = reader(x)
    assert_close(reader(x[:, :5]), y[:, :5])
    x[:, 5:] = 0
    assert torch.equal(reader(x)[:, :5], y[:, :5])


def test_forecasts_are_differences_from_the_last_value() -> None:
    data = toy_ett()
    before = without_learning(data)
    assert before["linear"]["test"] < 1e-2 < before["last value"]["test"]  # a sine is a linear recurrence
    trained = [
        forecast(Reader(name="small", memory=AarenConfig(d_model=8, n_heads=4)), data, steps=n, batch_size=2)["mse"]["test"]
        for n in (1, 100)
    ]
    assert trained[1] < 0.7 * trained[0]


def test_the_error_is_a_mean_over_windows_steps_and_channels() -> None:
    part = torch.randn(CONTEXT + HORIZON + 70, 2)
    wanted = [(part[i + 96 : i + 192] - part[i + 95]).square().mean() for i in range(len(part) - CONTEXT - HORIZON + 1)]
    assert errors_of(lambda x: x[:, -1:].expand_as(x), part) == pytest.approx(float(torch.stack(wanted).mean()), abs=1e-4)


def test_rows_are_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(forecasting, "etth1", lambda folder, context: toy_ett())
    for _ in range(2):
        forecasting.main(["folder", "--steps", "1", "--seeds", "1", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["last value", "linear", *(r.name for r in readers())]
    assert len(capsys.readouterr().out.splitlines()) == len(rows)

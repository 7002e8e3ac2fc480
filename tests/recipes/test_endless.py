"""A long stream tells what it held, whether it stayed finite, and how fast its ends are."""

import json

import pytest

from memseq.models.presets import preset
from memseq.recipes import endless


@pytest.mark.parametrize("name", ["aaren", "memformer", "gated_deltanet"])
def test_a_long_stream_tells_bytes_and_latencies(name: str) -> None:
    told = endless.million(preset(name, **endless.SHAPE).build().eval(), tokens=800, piece=200, rounds=4)
    assert told["finite"]
    assert len(told["bytes"]) == 1
    assert told["last_over_first"] > 0


def test_what_grows_and_what_breaks_is_told() -> None:
    growing = endless.million(preset("attention", **endless.SHAPE).build().eval(), tokens=800, piece=200, rounds=1)
    assert len(growing["bytes"]) > 1
    broken = preset("gru", **endless.SHAPE).build().eval()
    broken.embedding.weight.data.fill_(float("nan"))
    assert not endless.million(broken, tokens=400, piece=200, rounds=1)["finite"]


def test_systems_without_a_bound_are_left_out() -> None:
    names = endless.endless()
    assert "attention" not in names
    assert {"memformer", "titans", "gated_deltanet", "rmt", "aaren"} <= set(names)


def test_rows_that_are_there_are_kept(tmp_path) -> None:
    path = tmp_path / "results.json"
    for only in ("gru", "gru,elman"):
        endless.main(["--only", only, "--tokens", "80", "--rounds", "1", "--json", str(path)])
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["gru", "elman"]

"""Every broken memory is caught, by its own law; its sane twin keeps them all."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from sane import SANE

from memseq.checking import LAWS, QUICK, check_memory

FILES = sorted(Path(__file__).parent.joinpath("broken").glob("*.py"))


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"broken_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_broken_memory_is_caught_by_its_own_law(file: Path) -> None:
    broken = load(file)
    report = check_memory(broken.BROKEN, effort=QUICK)
    assert set(report.broken) == {broken.LAW, *broken.ALSO}, str(report)
    assert broken.LAW in report.broken, str(report)


@pytest.mark.parametrize("config", [*SANE, load(Path(__file__).parent / "broken" / "encodes_past_its_segment.py").SANE], ids=repr)
def test_a_sane_memory_keeps_every_law(config: object) -> None:
    report = check_memory(config, effort=QUICK)
    assert report.passed, str(report)
    assert [row.law for row in report.rows] == list(LAWS)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_decides_streams_and_weights_not_the_verdict(seed: int) -> None:
    for config in SANE:
        assert check_memory(config, effort=QUICK, seed=seed).passed


def test_every_law_has_a_broken_memory() -> None:
    assert {load(file).LAW for file in FILES} == set(LAWS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sane_twin_keeps_every_law(file: Path) -> None:
    twin = load(file).SANE
    if twin not in SANE:
        assert check_memory(twin, effort=QUICK).passed

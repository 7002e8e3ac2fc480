"""The law, for every memory and model of the list: one test, and a config for every branch that is another function."""

import pytest
from configs import CONFIGS

from memseq.checking import QUICK, Effort, check_memory
from memseq.systems import SYSTEMS, config_class

LONG = Effort(bounded=2_000, finite=10_000, finite_unbounded=2_000)  # a million tokens: `python -m memseq.recipes.endless`
STEMS = [stem for stem, system in SYSTEMS.items() if system.config is not None and system.kind != "backbone"]


def test_every_system_has_small_configs() -> None:
    assert set(STEMS) <= set(CONFIGS), "add the small configs of a new system to tests/contract/small/<stem>.py"


@pytest.mark.parametrize("stem", CONFIGS)
def test_it_keeps_the_law(stem: str) -> None:
    for config in CONFIGS[stem]():
        report = check_memory(config, effort=QUICK)
        assert report.passed, f"\n{report}"


@pytest.mark.slow
@pytest.mark.parametrize("stem", CONFIGS)
def test_it_keeps_the_law_on_long_streams(stem: str) -> None:
    report = check_memory(CONFIGS[stem]()[0], laws=["shape", "precision"], effort=LONG)
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("stem", STEMS)
def test_its_small_configs_are_of_its_own_class(stem: str) -> None:
    assert any(isinstance(config, config_class(stem)) for config in CONFIGS[stem]())

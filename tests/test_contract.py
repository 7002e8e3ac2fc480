"""What a memory refuses, what its defaults do, and what the report of a proof says."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from memseq.checking import LAWS, QUICK, Effort, Row
from memseq.checking.subject import Ruler, Subject
from memseq.contract import Memory, Report, check_memory, check_rows, empty
from memseq.errors import ConfigError, ContractError, InputError, StateError
from memseq.state import state_bytes


class SumState(NamedTuple):
    total: Tensor  # [B, D]


@dataclass(frozen=True, kw_only=True)
class SumConfig:
    d_model: int = 3
    fault: str = ""

    def build(self) -> "Sum":
        if self.fault == "build":
            raise ValueError("no such width")
        return Sum(self)


class Sum(Memory[SumState]):
    """y_t = W (x_1 + .. + x_t), which breaks in the way that its config names."""

    def __init__(self, config: SumConfig) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_state(self, batch_size: int) -> SumState:
        return SumState(self.output.weight.new_zeros(batch_size, self.config.d_model))

    def forward(self, x: Tensor, state: SumState) -> tuple[Tensor, SumState]:
        if self.config.fault == "long" and x.shape[1] > 100:
            raise RuntimeError("too long\nto be read")
        sums = state.total[:, None] + x.cumsum(1)
        return self.output(sums), SumState((0.5 if self.config.fault == "halves" else 1.0) * sums[:, -1].clone())


# -------------------------------------------------------------------------------------------------------------- memory


def test_step_and_advance_are_forward_by_default() -> None:
    memory, x = SumConfig().build().double(), torch.randn(2, 4, 3, dtype=torch.float64)
    y, state = memory(x, memory.init_state(2))
    stepped = memory.init_state(2)
    for t in range(4):
        y_t, stepped = memory.step(x[:, t], stepped)
        torch.testing.assert_close(y_t, y[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(stepped, state, rtol=1e-12, atol=1e-12)
    assert torch.equal(memory.advance(x, memory.init_state(2)).total, state.total)


def test_a_memory_says_what_it_cannot_read() -> None:
    memory = SumConfig().build()
    with pytest.raises(InputError, match=r"Sum reads features of shape \[B, T, 3\], got \[2, 4, 5\]"):
        memory(torch.zeros(2, 4, 5), memory.init_state(2))
    with pytest.raises(InputError, match=r"got \[2, 3\]"):
        memory(torch.zeros(2, 3), memory.init_state(2))
    with pytest.raises(InputError, match="T = 0 tokens; give at least one"):
        memory(torch.zeros(2, 0, 3), memory.init_state(2))
    with pytest.raises(StateError, match=r"the state holds 3 streams and the input 2;.*init_state\(2\)"):
        memory(torch.zeros(2, 4, 3), memory.init_state(3))


def test_rows_of_another_device_are_refused_and_counts_may_stay_on_the_host() -> None:
    with pytest.raises(StateError, match=r"lies on meta and the input on cpu; move it with to\(state, 'cpu'\)"):
        check_rows(2, torch.device("cpu"), (torch.zeros(2, device="meta"),))
    check_rows(2, torch.device("meta"), (torch.zeros(2, dtype=torch.int64), torch.zeros(2, device="meta")))
    check_rows(2, torch.device("cpu"), ())


def test_a_memory_must_define_its_two_verbs() -> None:
    with pytest.raises(TypeError, match="Memory must define init_state"):
        Memory().init_state(1)
    with pytest.raises(TypeError, match="Memory must define forward"):
        Memory().forward(torch.zeros(1, 1, 1), ())


def test_empty_costs_one_number() -> None:
    buffer = empty(torch.zeros(3, dtype=torch.float64), 7, 1000, 5, fill=-2.0, dtype=torch.float32)
    assert buffer.shape == (7, 1000, 5)
    assert buffer.dtype == torch.float32
    assert bool((buffer == -2.0).all())
    assert state_bytes((buffer,)) == 4


def test_the_proof_is_imported_when_asked_for() -> None:
    code = "import sys, memseq.contract as c; before = 'memseq.checking' in sys.modules; c.check_memory"
    code += "; print(before, 'memseq.checking' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})
    assert run.stdout.split() == ["False", "True"], run.stderr
    with pytest.raises(AttributeError, match="has no attribute 'check_memories'"):
        getattr(sys.modules["memseq.contract"], "check_memories")  # noqa: B009 (the module's own __getattr__ is under test)


# -------------------------------------------------------------------------------------------------------- check_memory


def test_the_laws_are_those_of_the_table() -> None:
    assert list(LAWS) == ["splits", "causality", "streams", "purity", "shape", "replay", "round trip", "precision"]
    assert {name: law.tolerance for name, law in LAWS.items()} == {
        "splits": 1e-10,
        "causality": 0.0,
        "streams": 1e-10,
        "purity": 0.0,
        "shape": 0.5,
        "replay": 1e-9,
        "round trip": 0.0,
        "precision": 0.1,
    }
    assert Effort() == Effort(bounded=10_000, finite=100_000, finite_unbounded=10_000, piece=2_000)


def test_chosen_laws_are_proven_in_the_order_given() -> None:
    report = check_memory(SumConfig(), laws=["purity", "splits"], effort=QUICK)
    assert [row.law for row in report.rows] == ["purity", "splits"]
    assert report.passed
    assert report["splits"].deviation < 1e-14
    with pytest.raises(KeyError):
        report["causality"]


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no law 'split': did you mean 'splits'\?"):
        check_memory(SumConfig(), laws=["split"])
    with pytest.raises(ConfigError, match="tokens=3 is too short"):
        check_memory(SumConfig(), tokens=3)
    with pytest.raises(ConfigError, match="has no build"):
        check_memory(3)
    with pytest.raises(ConfigError, match="finite must be at least 4, got 0"):
        Effort(finite=0)
    with pytest.raises(ContractError, match=r"cannot be built: ValueError: no such width \(test_contract.py:\d+ in build\)") as caught:
        check_memory(SumConfig(fault="build"))
    assert caught.value.report is None


def test_a_crash_is_a_broken_law_and_says_where() -> None:
    report = check_memory(SumConfig(fault="long"), effort=QUICK)
    assert report.broken == ("shape", "precision")
    assert report["shape"].deviation == float("inf")
    assert "RuntimeError: too long to be read (test_contract.py:" in report["shape"].where
    assert report["shape"].where.endswith("in forward)")


def test_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    check_memory(SumConfig(), laws=["replay"], effort=QUICK)
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


def test_a_proof_can_be_repeated() -> None:
    def numbers(seed: int) -> list[float]:
        return [row.deviation for row in check_memory(SumConfig(), effort=QUICK, seed=seed).rows]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


# -------------------------------------------------------------------------------------------------------------- report


def test_a_report_reads_as_a_table() -> None:
    report = check_memory(SumConfig(), effort=QUICK)
    title, head, *rows, verdict = str(report).splitlines()
    assert title == "SumConfig(d_model=3, fault='')"
    assert head.split() == ["law", "holds", "deviation", "tolerance", "seconds", "where"]
    assert [row.split("  ")[0] for row in rows] == list(LAWS)
    assert all(row.index("yes") == head.index("holds") for row in rows)
    assert verdict.startswith("keeps the law (")


def test_a_broken_report_names_the_law_the_deviation_and_the_place() -> None:
    report = check_memory(SumConfig(fault="halves"), laws=["splits", "causality"], effort=QUICK)
    assert report.broken == ("splits",)
    assert not report.passed
    assert "breaks the law of splits (" in str(report)
    assert "  NO  " in str(report)
    row = report["splits"]
    assert row.deviation > 0.1
    with pytest.raises(ContractError) as caught:
        report.raise_if_broken()
    expected = (
        f"SumConfig(d_model=3, fault='halves') breaks the law of splits at {row.where}: deviation {row.deviation:.2g}, tolerance 1e-10"
    )
    assert str(caught.value) == expected
    assert caught.value.report is report
    assert row.where.startswith(("gradient of ", "output", "state.total"))
    assert ", from " in row.where


def test_a_report_without_a_broken_law_raises_nothing() -> None:
    check_memory(SumConfig(), laws=["causality"]).raise_if_broken()


def test_a_report_is_json() -> None:
    report = check_memory(SumConfig(fault="long"), laws=["splits", "shape"], effort=QUICK)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["subject"] == "SumConfig(d_model=3, fault='long')"
    assert found["passed"] is False
    assert found["broken"] == ["shape"]
    splits, shape = found["laws"]
    assert splits["passed"]
    assert splits["claim"] == LAWS["splits"].claim
    assert shape["deviation"] is None
    assert set(shape) == {f.name for f in dataclasses.fields(Row)}


def test_a_report_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Report(subject="", rows=()).subject = "other"


# ------------------------------------------------------------------------------------------------------ how it measures


def test_streams_are_long_enough_for_every_border() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nested:
        layers: tuple[object, ...]
        d_model: int = 3

        def build(self) -> Sum:
            return Sum(SumConfig())

    @dataclass(frozen=True, kw_only=True)
    class Windowed:
        window: int = 6
        segment_length: int = 4

    def subject(config: object, tokens: int = 13) -> Subject:
        return Subject(config, tokens=tokens, seed=0, device=torch.device("cpu"))

    assert subject(SumConfig()).tokens == 13
    assert subject(Nested(layers=((Windowed(window=20),), Windowed()))).tokens == 2 * 24 + 12 + 1  # the window turns over after both
    for name, pieces in subject(Nested(layers=(Windowed(),))).cuts():
        assert sum(pieces) == 2 * 10 + 5 + 1, name
        assert min(pieces) > 0
        assert len(pieces) > 1


def test_a_ruler_keeps_the_worst_as_a_multiple_of_its_tolerance() -> None:
    ruler = Ruler(1e-3)
    ruler.record(5e-4, "half")
    ruler.record(1e-2, "a tenth", 0.1)
    assert (ruler.passed, ruler.where, ruler.shown_tolerance) == (True, "half", 1e-3)
    ruler.record(float("nan"), "not a number")
    assert (ruler.passed, ruler.where, ruler.deviation) == (False, "not a number", float("inf"))


def test_a_ruler_compares_tensors() -> None:
    def where(found: Tensor, wanted: Tensor) -> tuple[bool, float, str]:
        ruler = Ruler(1e-10)
        ruler.compare([found], [wanted], ["leaf"], "here")
        return ruler.passed, ruler.deviation, ruler.where

    one, counts = torch.ones(2, dtype=torch.float64), torch.tensor([1, 2])
    assert where(one, one)[0]
    assert where(2 * one, 2 * one + 1e-8) == (False, pytest.approx(5e-9, rel=1e-3), "leaf, here")
    assert where(one.float(), one) == (False, float("inf"), "leaf, here: float32 [2] instead of float64 [2]")
    assert where(one[:1], one)[2] == "leaf, here: float64 [1] instead of float64 [2]"
    assert where(counts, counts + 1)[2] == "leaf, here: integers differ"
    nothing = torch.tensor([-1e30, 0.5], dtype=torch.float64)  # a number that stands for nothing does not set the scale
    assert where(nothing + torch.tensor([0.0, 1e-6]), nothing)[1] == pytest.approx(2e-6, rel=1e-3)
    assert not where(torch.tensor([0.0, 0.5], dtype=torch.float64), nothing)[0]
    infinite = torch.tensor([float("-inf"), 0.5], dtype=torch.float64)
    assert where(infinite, infinite)[0]
    assert not where(one * float("nan"), one)[0]


def test_a_ruler_compares_bits() -> None:
    def passed(found: Tensor, wanted: Tensor) -> bool:
        ruler = Ruler(0.0)
        ruler.identical([found], [wanted], ["leaf"], "here")
        return ruler.passed

    numbers = torch.tensor([1.0, float("nan"), float("inf")])
    assert passed(numbers, numbers.clone())
    assert not passed(numbers.nextafter(torch.zeros(3)), numbers)
    assert not passed(torch.zeros(3), numbers)
    assert not passed(torch.tensor([True]), torch.tensor([False]))

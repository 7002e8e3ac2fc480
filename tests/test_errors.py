"""Errors are one family, drawn in the docstring, and each can be caught as what Python would have raised."""

import pytest

from memseq import errors
from memseq.errors import ContractError, MemseqError, MissingExtraError, nearest

ALSO = {
    "CheckpointError": ValueError,
    "ConfigError": ValueError,
    "ContractError": AssertionError,
    "DataError": ValueError,
    "InputError": ValueError,
    "MissingExtraError": ImportError,
    "StateError": ValueError,
    "TrainingError": RuntimeError,
}


def test_the_family_is_whole_and_public() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, MemseqError)}
    assert found == {*ALSO, "MemseqError"}
    assert found | {"nearest"} == set(errors.__all__)


@pytest.mark.parametrize("name", ALSO)
def test_each_is_caught_by_the_family_and_as_its_builtin(name: str) -> None:
    kind = getattr(errors, name)
    assert issubclass(kind, MemseqError)
    assert issubclass(kind, ALSO[name])
    assert kind.__doc__


@pytest.mark.parametrize("name", ALSO)
def test_the_docstring_draws_each_with_its_builtin(name: str) -> None:
    line = next(line for line in errors.__doc__.splitlines() if f"── {name} " in line)
    assert line.endswith(f"(also {'an' if ALSO[name].__name__[0] in 'AI' else 'a'} {ALSO[name].__name__})")


def test_a_missing_extra_says_what_to_install() -> None:
    error = MissingExtraError("fastapi", extra="serve")
    assert str(error) == "fastapi is not installed; run: pip install 'memseq[serve]'"


def test_a_contract_error_carries_its_report() -> None:
    assert ContractError("broken").report is None
    assert ContractError("broken", report=7).report == 7
    assert str(ContractError("broken", report=7)) == "broken"


def test_nearest_guesses_only_what_is_near() -> None:
    choices = ["lstm", "memformer", "gru"]
    assert nearest("memfromer", choices) == "did you mean 'memformer'? (one of: gru, lstm, memformer)"
    assert nearest("xyz", choices) == "(one of: gru, lstm, memformer)"

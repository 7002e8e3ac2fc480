"""Text put into frozen configs: typed, checked, and all at once."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from memseq.errors import ConfigError
from memseq.recipes.settings import assignments, split, typed, with_values


@dataclass(frozen=True, kw_only=True)
class Layer:
    width: int = 4
    window: int | None = None

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ConfigError(f"width={self.width} is odd")


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int = 4
    layers: tuple[Any, ...] = (Layer(), (Layer(), Layer()))
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    first: Layer = field(default_factory=Layer)

    def __post_init__(self) -> None:
        if self.first.width != self.width:
            raise ConfigError("widths differ")


def test_values_take_the_type_of_their_field():
    made = with_values(Model(), {"rate": "1", "betas": "0.5, 0.25", "kind": "b", "flag": "true", "first.window": "7"})
    assert made == Model(rate=1.0, betas=(0.5, 0.25), kind="b", flag=True, first=Layer(window=7))
    assert type(made.rate) is float
    assert with_values(Layer(window=3), {"window": "none"}) == Layer()


def test_a_star_reaches_every_item_and_a_number_one_of_them():
    made = with_values(Model(), {"layers.0.window": "5", "layers.1.*.window": "3", "layers.1.1.width": "8"})
    assert made.layers == (Layer(window=5), (Layer(window=3), Layer(window=3, width=8)))


def test_changes_that_need_each_other_are_made_at_once():
    assert with_values(Model(), {"width": "8", "first.width": "8"}) == Model(width=8, first=Layer(width=8))
    with pytest.raises(ConfigError, match="widths differ"):
        with_values(Model(), {"width": "8"})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("widht", "3", "Model has no field 'widht'; did you mean 'width'"),
        ("first.widht", "3", r"Layer has no field 'first.widht'"),
        ("width", "3.5", "width must be a whole number, got '3.5'"),
        ("kind", "c", "kind has no choice 'c'"),
        ("flag", "1", "flag must be true or false"),
        ("betas", "1", "betas takes 2 values"),
        ("first", "3", "first is a config of its own; set a field of it, such as first.width=VALUE"),
        ("layers", "3", r"layers is a config of its own; set a field of it, such as layers\.\*\.FIELD"),
        ("layers.2.width", "3", "layers.2 names no item; there are 0 to 1"),
        ("rate.x", "3", "rate.x leads into rate"),
        ("first.width", "3", "first: width=3 is odd"),
        ("first.window", "x", "first.window must be one of int, none; got 'x'"),
    ],
)
def test_what_does_not_fit_is_said(path, value, message):
    with pytest.raises(ConfigError, match=message):
        with_values(Model(), {path: value})


def test_words_become_paths_and_values():
    assert assignments(["a.b=1", "c=x=y"]) == {"a.b": "1", "c": "x=y"}
    assert split({"training.lr": "1", "d": "2"}, "training") == ({"lr": "1"}, {"d": "2"})
    assert typed("1_000", int, "n") == 1000

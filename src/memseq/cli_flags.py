"""What the commands share: how a flag is shown, what is printed, where a model runs."""

from typing import Annotated, Any

from tyro.conf import arg

from memseq.errors import ConfigError

__all__ = ["Json", "Sets", "device", "positive", "show", "words"]


def words(text: str, metavar: str | None = None) -> Any:
    """How a flag is shown: what it means, with its default in the words."""
    return arg(help=text, metavar=metavar, help_behavior_hint="")


Json = Annotated[bool, words("print JSON in place of the table")]
Sets = Annotated[tuple[str, ...], words("set fields of the config, such as dropout=0.1 or layers.*.window=64", "PATH=VALUE")]


def show(as_json: bool, value: Any, rows: list[dict[str, Any]], title: str | None = None) -> None:
    """`value` as JSON, or `rows` as a table."""
    from memseq.report import tables

    if as_json:
        print(tables.as_json(value))
    elif rows:
        tables.print_table(rows, title=title)


def positive(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be more than 0, got {value}")


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

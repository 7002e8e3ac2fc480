"""What probed models say in words: a row for each question, a column for each model."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["named", "spoken"]

Result = Mapping[str, Any]


def named(results: Sequence[Result]) -> list[str]:
    """A name for each model; models of one name are numbered."""
    names = [result["model"]["name"] for result in results]
    return [name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)]


def spoken(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row for each question that a probe answers, a column for each model."""
    names = named(results)
    answers: dict[str, dict[str, str]] = {}
    for name, result in zip(names, results, strict=True):
        for probe in result["probes"].values():
            for row in probe["result"]["says"]:
                answers.setdefault(row["question"], {})[name] = row["answer"]
    heads = ["answer"] if len(names) == 1 else names
    return [{"question": q} | {head: told.get(name, "") for head, name in zip(heads, names, strict=True)} for q, told in answers.items()]

"""Word for word or the gist: lists of nouns read again by attention and by an LSTM, both small, trained alike.

Source: Armeni, Honey & Linzen (arXiv:2210.13569): when a list of nouns returns after other text, it hardly surprises a Transformer, and a
permuted one does; an LSTM is helped little, and by any order alike. Here both learn the language of such texts from nothing:

    [list] w_1 ... w_N   other words   [again] w'_1 ... w'_N         N distinct nouns of 32; w' = w in nine texts of ten, else other nouns

    python -m memseq.recipes.verbatim --json results.json

Two blocks of width 64, equal in weights (`as_wide`), one batch after the other in the same order, the same processor seconds. Asked as the
probe does (`probes/verbatim.py`): r = 100 x surprisal of w' / surprisal of w, the first noun of each list left out, the median over texts
that no training had; w' repeated, permuted, or other nouns.

    word for word   r of attention for a repeated list is at most 15
    order           a permuted list surprises it at least 1.5 times as much
    gist            an LSTM is not: a permuted list surprises it at most 1.5 times as much
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.memories.attention import AttentionConfig
from memseq.memories.lstm import LSTMConfig
from memseq.models.stack import StackConfig
from memseq.probes.asking import surprisal
from memseq.probes.verbatim import median_with_error
from memseq.recipes.fitting import Table, as_wide, fit_within, weights, weights_of
from memseq.recipes.machine import keep_freed_memory
from memseq.tasks.nouns import CONDITIONS
from memseq.tasks.task import choose_distinct

__all__ = ["claims", "contenders", "lists", "main", "read", "run", "texts"]

NOUNS, OTHERS = 32, 16
LIST, AGAIN = NOUNS + OTHERS, NOUNS + OTHERS + 1
V, D = AGAIN + 1, 64
SIZES, BETWEEN = (3, 8), (0, 8)  # nouns of a list, and words between the lists, while training
ASKED = ((5, 0), (5, 8), (8, 8), (8, 32))  # nouns, and words between
TARGETS = {"word for word": 15.0, "order": 1.5, "gist": 1.5}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    seconds: float = 15.0
    batch_size: int = 16
    texts: int = 128  # of a condition


def contenders() -> dict[str, StackConfig]:
    """Both rows, of equal weights."""
    lstm = StackConfig(vocab_size=V, d_model=D, layers=2 * (LSTMConfig(d_model=D),), ff_mult=0.5)
    # lists are short: a base of 10 spends no features on distances that nobody asks for
    attention = StackConfig(vocab_size=V, d_model=D, layers=2 * (AttentionConfig(d_model=D, n_heads=4, rotary_base=10.0),))
    return {"attention": as_wide(attention, weights_of(lstm)), "lstm": lstm}


def lists(rows: int, n: int, condition: str, generator: torch.Generator) -> tuple[Int64[Tensor, "rows n"], Int64[Tensor, "rows n"]]:
    """The first list of each text and the second."""
    nouns = choose_distinct(rows, 2 * n, NOUNS, generator)
    first = nouns[:, :n]
    match condition:
        case "repeat":
            return first, first
        case "permute":  # turned about, so that no noun has its place
            turns = torch.randint(1, n, (rows, 1), generator=generator)
            return first, first.gather(1, (torch.arange(n) + turns) % n)
        case _:
            return first, nouns[:, n:]


def texts(first: Tensor, second: Tensor, between: int, generator: torch.Generator) -> Int64[Tensor, "rows T"]:
    """Both lists with their marks, and `between` other words."""
    rows = len(first)
    others = torch.randint(NOUNS, LIST, (rows, between), generator=generator)
    marks = (torch.full((rows, 1), mark) for mark in (LIST, AGAIN))
    return torch.cat([next(marks), first, others, next(marks), second], dim=1)


def lesson(budget: Budget, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(tokens, targets): the nouns of both lists are predicted."""
    n, d = (int(torch.randint(low, high + 1, (1,), generator=generator)) for low, high in (SIZES, BETWEEN))
    kept = torch.rand(budget.batch_size, 1, generator=generator) < 0.9
    first, other = lists(budget.batch_size, n, "control", generator)
    tokens = texts(first, torch.where(kept, first, other), d, generator)
    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = torch.where(tokens[:, 1:] < NOUNS, tokens[:, 1:], -100)
    return tokens, targets


def run(name: str, *, seed: int = 0, budget: Budget = Budget()) -> dict[str, Any]:
    """Train and ask; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model: Any = contenders()[name].build()
    generator = torch.Generator().manual_seed(seed)

    def loss(_: float) -> Tensor:
        tokens, targets = lesson(budget, generator)
        total, count, _ = model.loss(tokens, targets, model.init_state(len(tokens)))
        return total / count

    steps, seconds = fit_within(model, loss, seconds=budget.seconds, lr=5e-3)
    asked = [{"nouns": n, "between": d} | read(model, n, d, texts_of_each=budget.texts) for n, d in ASKED]
    return {"name": name, "seed": seed, "steps": steps, "cpu_seconds": round(seconds, 1), "parameters": weights(model), "asked": asked}


@torch.no_grad()
def read(model: Any, n: int, between: int, *, texts_of_each: int, seed: int = 1000) -> dict[str, Any]:
    """The median of r by condition, with the ends of its 95 % interval."""
    found: dict[str, Any] = {}
    for condition in CONDITIONS:
        generator = torch.Generator().manual_seed(seed)
        first, second = lists(texts_of_each, n, condition, generator)
        tokens = texts(first, second, between, generator)
        nats, _ = surprisal(model, tokens, model.init_state(texts_of_each))
        x1, x2 = nats[:, 1:n].mean(1), nats[:, 1 - n :].mean(1)  # nats[:, i] are of token i + 1
        found[condition] = [round(value, 1) for value in median_with_error(100 * x2 / x1, generator)]
    return found


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and what the worst seed reached, at the sizes of training."""
    repeat, order = [{name: [] for name in ("attention", "lstm")} for _ in range(2)]
    for row in rows:
        cell = next(cell for cell in row["asked"] if (cell["nouns"], cell["between"]) == (5, 8))
        repeat[row["name"]].append(cell["repeat"][0])
        order[row["name"]].append(cell["permute"][0] / cell["repeat"][0])
    worst, least = max(repeat["attention"], default=100.0), min(order["attention"], default=1.0)
    most = max(order["lstm"], default=float("inf"))
    return {
        "word for word": {"target": TARGETS["word for word"], "reached": worst, "ok": worst <= TARGETS["word for word"]},
        "order": {"target": TARGETS["order"], "reached": round(least, 2), "ok": least >= TARGETS["order"]},
        "gist": {"target": TARGETS["gist"], "reached": round(most, 2), "ok": most <= TARGETS["gist"]},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Lists of nouns read again by attention and by an LSTM of equal weights.")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default 2)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--seconds", type=float, default=Budget.seconds, help=f"of each training (default {Budget.seconds:g})")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.verbatim", given.json, claims=claims)
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for name in contenders():
            if (name, seed) not in done and given.only in (None, name):
                table.add(**run(name, seed=seed, budget=Budget(seconds=given.seconds)))


if __name__ == "__main__":
    main()

"""What it costs to read a part of the text again and again: loss on other text, and copying, by the number of readings.

Source: Hernandez et al. (arXiv:2205.10487): of models that read as many tokens in all, half of them from a pool that comes E times,
those of a middle E are the worst on text that none has read (double descent), and copy worst from their own context: what is remembered
in the weights is paid for with memory in the stream.

    python -m memseq.recipes.repeated --json results.json

Bytes of the source of Python's standard library, in rows (`tasks/repeated.py`: the same unique rows at the same steps whatever E is; equal
rows of the text are kept once). E = 1 reads nothing twice; "without" reads the unique half alone, with half as many rows a step: what the
other half is worth. Rates of `recipes/fitting.py`, no dropout, weight decay 0.1. Two settings (`BUDGETS`):

    text        two blocks of full attention of width 64 on rows of 128 bytes: nobody learns to copy in the time there is
    copies      every other row, of the pool too, is a passage of 4 to 16 distinct letters over and over, and a short gated convolution
                stands before each attention: copying is learned in the first half of a training. "1 at 0.5" is a training of its own
                on half of the steps: what repetition costs is told in steps, for loss and for copying alike

In bits a byte, at the end and on the way:

    held out    rows of files that no training read
    pool        rows that were read E times
    copying     a passage again, right after it: of held-out text, and of distinct bytes at random; gain: first - second
    prefix      when distinct bytes come again, how much the best head looks at what followed the last one the first time
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from memseq.memories.attention import AttentionConfig
from memseq.memories.base_conv import BaseConvConfig
from memseq.models.stack import StackConfig
from memseq.probes.asking import surprisal
from memseq.probes.retrieval_heads import head_scores
from memseq.recipes.fitting import Table, fit, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.probe_attention import attention_of
from memseq.tasks.repeated import Mixture, Place
from memseq.tasks.task import choose_distinct
from memseq.tasks.text import Text, stdlib

__all__ = ["BUDGETS", "Budget", "Material", "claims", "copying", "in_steps", "main", "material", "prefix_matching", "run", "with_copies"]

V, D = 256, 64
SHARE = 0.5
EPOCHS = (1, 10, 100, 1000)
WITHOUT = "without"
MARKS = (0.25, 0.5, 0.75)  # of the steps, where the loss on held-out text is taken on the way
SHORTER = (0.125, 0.25, 0.5, 0.75)  # of the steps: trainings that repeat nothing and end sooner
LETTERS = torch.arange(64, 96)  # of copies


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    steps: int = 1000
    batch_size: int = 16  # rows
    length: int = 128  # bytes of a row
    held_out: int = 384  # rows
    lr: float = 4e-3
    copies: float = 0.0  # share of the rows that are passages over and over
    passages: tuple[int, int] = (8, 48)  # bytes of one, at least and at most

    @property
    def letters(self) -> Tensor:
        """What passages at random are made of."""
        return LETTERS if self.copies else torch.tensor([10, *range(32, 127)])  # source: printable bytes, and the end of a line


BUDGETS = {"text": Budget(), "copies": Budget(steps=360, length=96, lr=5e-3, copies=0.5, passages=(4, 16))}


class Material(NamedTuple):
    """Rows of bytes."""

    pool: NDArray[Any]
    once: NDArray[Any]
    held_out: Int64[Tensor, "rows length"]


def material(mixture: Mixture, texts: tuple[Text, Text], budget: Budget) -> Material:
    """The rows of one run; what is held out does not depend on how often the pool is read."""
    L = budget.length
    train, other = ([np.concatenate([ids for _, ids in text.chunks(n)]) for n in range(len(text))] for text in texts)
    pool, once = mixture.split([ids.astype(np.uint8) for ids in train if len(ids) >= L], L)
    rows = np.concatenate([ids[: len(ids) // L * L].reshape(-1, L) for ids in other])
    chosen = rows[np.linspace(0, len(rows) - 1, budget.held_out).astype(int)]
    pool, once = (with_copies(part, budget, seed=(mixture.seed, k)) for k, part in enumerate((pool, once[: mixture.n_rows])))
    return Material(pool, once, torch.from_numpy(chosen.astype(np.int64)))


def with_copies(rows: NDArray[Any], budget: Budget, seed: tuple[int, int]) -> NDArray[Any]:
    """Rows of which `budget.copies`, evenly, are passages over and over."""
    chance, rows, (least, most) = np.random.default_rng(seed), rows.copy(), budget.passages
    counted = np.floor(np.arange(len(rows) + 1) * budget.copies)
    for i in np.flatnonzero(np.diff(counted)):
        passage = budget.letters.numpy()[chance.permutation(len(budget.letters))[: chance.integers(least, most + 1)]]
        rows[i] = np.resize(passage, rows.shape[1])
    return rows


def run(part: str, name: str, texts: tuple[Text, Text], *, seed: int = 0, budget: Budget) -> dict[str, Any]:
    """Train on a mixture and measure; `name` is a number of readings, perhaps at a share of the steps, or "without".

    Seconds are of this process's processor time.
    """
    torch.manual_seed(seed)
    readings, _, share = name.partition(" at ")
    budget = replace(budget, steps=round(float(share or 1) * budget.steps))
    epochs = 1.0 if name == WITHOUT else float(readings)
    mixture = Mixture(n_rows=budget.steps * budget.batch_size, share=SHARE, epochs=epochs, seed=seed)
    data = material(mixture, texts, budget)
    attention = AttentionConfig(d_model=D, n_heads=4)
    layer = (BaseConvConfig(d_model=D, width=4), attention) if budget.copies else attention
    model: Any = StackConfig(vocab_size=V, d_model=D, layers=(layer, layer), ff_mult=2.0 if budget.copies else 4.0).build()
    place, read, on_the_way = Place(), 0, {}
    asked = {round(mark * budget.steps): mark for mark in MARKS}

    def loss(step: int) -> Tensor:
        nonlocal place, read
        if step in asked:
            on_the_way[str(asked[step])] = round(bits(model, data.held_out), 4)
        rows, place = mixture.take(budget.batch_size, place)
        found = mixture.read(rows, data.pool, data.once)
        if name == WITHOUT and not rows.repeated.all():  # a step has to read something
            found = found[~rows.repeated]
        read += found.size
        tokens = torch.from_numpy(found.astype(np.int64))
        total, count, _ = model.loss(tokens[:, :-1], tokens[:, 1:], model.init_state(len(tokens)))
        return total / count.clamp(min=1)

    seconds = fit(model, loss, steps=budget.steps, lr=budget.lr, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1000)
    m = budget.passages[1]
    passages = {"text": data.held_out[:, :m], "random": budget.letters[choose_distinct(budget.held_out, m, len(budget.letters), generator)]}
    seen = torch.from_numpy(data.pool[:256].astype(np.int64))
    return {
        "part": part,
        "name": name,
        "seed": seed,
        "steps": budget.steps,
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "bytes_read": read,
        "pool_rows": 0 if name == WITHOUT else mixture.pool_size,
        "held_out": round(bits(model, data.held_out), 4),
        "pool": None if name == WITHOUT else round(bits(model, seen), 4),
        "copying": {kind: copying(model, rows) for kind, rows in passages.items()},
        "prefix": round(prefix_matching(model, budget, generator), 4),
        "on_the_way": on_the_way,
    }


@torch.no_grad()
def bits(model: Any, rows: Int64[Tensor, "rows length"]) -> float:
    """A byte, the first of each row left out."""
    parts = [surprisal(model, part, model.init_state(len(part)))[0].sum() for part in rows.split(64)]
    return float(sum(parts)) / math.log(2) / (rows.shape[0] * (rows.shape[1] - 1))


@torch.no_grad()
def copying(model: Any, passages: Int64[Tensor, "rows m"]) -> dict[str, float]:
    """Bits a byte of each passage when it is read, and right again; the first byte of either is left out."""
    nats = [surprisal(model, torch.cat([part, part], dim=1), model.init_state(len(part)))[0] for part in passages.split(64)]
    found = torch.cat(nats) / math.log(2)
    m = passages.shape[1]
    first, second = float(found[:, : m - 1].mean()), float(found[:, m:].mean())
    return {"first": round(first, 4), "second": round(second, 4), "gain": round(first - second, 4)}


@torch.no_grad()
def prefix_matching(model: Any, budget: Budget, generator: torch.Generator, *, draws: int = 12, rows: int = 16) -> float:
    """u_1 ... u_m u_1 ... u_j: the weight of the best head on u_(j+1), a mean over passages, m and j."""
    attention: Any = attention_of(model)
    found = []
    for _ in range(draws):
        m = int(torch.randint(budget.passages[0], budget.passages[1] + 1, (1,), generator=generator))
        j = int(torch.randint(m - 1, (1,), generator=generator))
        u = budget.letters[choose_distinct(rows, m, len(budget.letters), generator)]
        look = attention.weights(torch.cat([u, u[:, : j + 1]], dim=1))
        found.append(head_scores(look, torch.full((rows,), j + 1), torch.ones(rows, dtype=torch.bool))[1])
    return float(torch.stack(found).mean(0).max())


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How much worse the worst middle number of readings is than both ends, in bits a byte; above 0 in every seed, it is shown.

    Copying is judged by its gain: the loss of the second reading alone rises with that of any text. With copies among the rows both are
    told in steps too: copying is damaged more where, at the number of readings that is worst for held-out text, it is where a training
    without repetition was earlier than it was with held-out text.
    """
    told: dict[str, dict[str, Any]] = {}
    questions = {
        "double descent": lambda row: row["held_out"],
        "copying of text": lambda row: -row["copying"]["text"]["gain"],
        "copying at random": lambda row: -row["copying"]["random"]["gain"],
    }
    for part in BUDGETS:
        own = {seed: {row["name"]: row for row in rows if (row["part"], row["seed"]) == (part, seed)} for seed in _seeds(rows, part)}
        for question, value in questions.items():
            peaks = {}
            for seed, named in own.items():
                found = {float(name): value(row) for name, row in named.items() if name != WITHOUT and " at " not in name}
                if len(found) > 2:
                    ends = max(found[min(found)], found[max(found)])
                    peaks[str(seed)] = round(max(v for e, v in found.items() if min(found) < e < max(found)) - ends, 4)
            if peaks:
                worst = {"above_both_ends": peaks, "mean": round(statistics.mean(peaks.values()), 4), "ok": min(peaks.values()) > 0}
                told[f"{part}: {question}"] = worst
        steps = {str(seed): worth for seed, named in own.items() if (worth := in_steps(named))}
        if steps:
            earlier = [worth["copying"] < worth["held out"] for worth in steps.values()]
            told[f"{part}: copying is damaged more"] = {"share_of_the_steps": steps, "ok": all(earlier)}
    return told


def _seeds(rows: Sequence[dict[str, Any]], part: str) -> list[int]:
    return sorted({row["seed"] for row in rows if row["part"] == part})


def in_steps(named: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Where the run that is worst on held-out text stands, in shares of the steps of trainings that repeat nothing; nothing without these.

    Between two trainings the share is taken along a line; below the shortest it is told as the shortest.
    """
    shorter = {float(name.partition(" at ")[2] or 1): row for name, row in named.items() if name.partition(" at ")[0] == "1"}
    repeated = [row for name, row in named.items() if " at " not in name and name not in ("1", WITHOUT)]
    if len(shorter) < 2 or not repeated:
        return {}
    worst = max(repeated, key=lambda row: row["held_out"])
    shares = sorted(shorter)
    measures = {"held out": lambda row: -row["held_out"], "copying": lambda row: row["copying"]["random"]["gain"]}
    worth = {}
    for name, measure in measures.items():
        reached = np.maximum.accumulate([measure(shorter[share]) for share in shares])  # more steps, no less
        worth[name] = round(float(np.interp(measure(worst), reached, shares)), 4)
    return {"readings": worst["name"], **worth}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text of which half comes again and again: loss elsewhere, and copying.")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS), default=list(BUDGETS), help="settings (default: both)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default 2)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS), help="readings of the pool (default 1 10 100 1000)")
    parser.add_argument("--steps", type=int, help="of each training (default: the setting's)")
    parser.add_argument("--held-out", type=int, default=Budget.held_out, help=f"rows asked about (default {Budget.held_out})")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.repeated", given.json, claims=claims, share=SHARE)
    done, texts = {(row["part"], row["name"], row["seed"]) for row in table.rows}, stdlib()
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for part in given.parts:
            budget = replace(BUDGETS[part], steps=given.steps or BUDGETS[part].steps, held_out=given.held_out)
            shorter = [f"1 at {share}" for share in SHORTER] if part == "copies" else []
            for name in [*map(str, given.epochs), WITHOUT, *shorter]:
                if (part, name, seed) not in done:
                    table.add(**run(part, name, texts, seed=seed, budget=budget))


if __name__ == "__main__":
    main()

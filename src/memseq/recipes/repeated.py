"""What it costs to read a part of the text again and again: loss on other text, and copying, by the number of readings.

Source: Hernandez et al. (arXiv:2205.10487): of models that read as many tokens in all, half of them from a pool that comes E times,
those of a middle E are the worst on text that none has read (double descent), and copy worst from their own context: what is remembered
in the weights is paid for with memory in the stream.

    python -m memseq.recipes.repeated --json results.json

Two blocks of full attention of width 64 learn bytes of the source of Python's standard library, in rows of 128 (`tasks/repeated.py`: the
same unique rows at the same steps whatever E is; equal rows of the text are kept once). E = 1 reads nothing twice; "without" reads the
unique half alone, with half as many rows a step: what the other half is worth. Rates of `recipes/fitting.py`, no dropout, weight decay 0.1.
In bits a byte, at the end and on the way:

    held out    rows of files that no training read
    pool        rows that were read E times
    copying     a passage of 48 bytes again, right after it: of held-out text, and of distinct bytes at random; gain: first - second
    prefix      when distinct bytes come again, how much the best head looks at what followed the last one the first time
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from memseq.memories.attention import AttentionConfig
from memseq.models.stack import StackConfig
from memseq.probes.asking import surprisal
from memseq.probes.retrieval_heads import head_scores
from memseq.recipes.fitting import Table, fit, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.probe_attention import attention_of
from memseq.tasks.repeated import Mixture, Place
from memseq.tasks.task import choose_distinct
from memseq.tasks.text import Text, stdlib

__all__ = ["Budget", "Material", "claims", "copying", "main", "material", "prefix_matching", "run"]

V, D, LENGTH, PASSAGE = 256, 64, 128, 48
SHARE = 0.5
EPOCHS = (1, 10, 100, 1000)
WITHOUT = "without"
MARKS = (0.25, 0.5, 0.75)  # of the steps, where the loss on held-out text is taken on the way


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    steps: int = 1000
    batch_size: int = 16  # rows
    held_out: int = 384  # rows
    lr: float = 4e-3


class Material(NamedTuple):
    """Rows of bytes."""

    pool: NDArray[Any]
    once: NDArray[Any]
    held_out: Int64[Tensor, "rows length"]


def material(mixture: Mixture, texts: tuple[Text, Text], held_out: int) -> Material:
    """The rows of one run; what is held out does not depend on how often the pool is read."""
    train, other = ([np.concatenate([ids for _, ids in text.chunks(n)]) for n in range(len(text))] for text in texts)
    pool, once = mixture.split([ids.astype(np.uint8) for ids in train if len(ids) >= LENGTH], LENGTH)
    rows = np.concatenate([ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH) for ids in other])
    chosen = rows[np.linspace(0, len(rows) - 1, held_out).astype(int)]
    return Material(pool, once, torch.from_numpy(chosen.astype(np.int64)))


def run(name: str, texts: tuple[Text, Text], *, seed: int = 0, budget: Budget = Budget()) -> dict[str, Any]:
    """Train on a mixture and measure; `name` is a number of readings, or "without". Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    epochs = 1.0 if name == WITHOUT else float(name)
    mixture = Mixture(n_rows=budget.steps * budget.batch_size, share=SHARE, epochs=epochs, seed=seed)
    data = material(mixture, texts, budget.held_out)
    layer = AttentionConfig(d_model=D, n_heads=4)
    model: Any = StackConfig(vocab_size=V, d_model=D, layers=(layer, layer)).build()
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
    passages = {"text": data.held_out[:, :PASSAGE], "random": alphabet()[choose_distinct(budget.held_out, PASSAGE, 96, generator)]}
    seen = torch.from_numpy(data.pool[:256].astype(np.int64))
    return {
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
        "prefix": round(prefix_matching(model, generator), 4),
        "on_the_way": on_the_way,
    }


def alphabet() -> Tensor:
    """What source is written in: 95 printable bytes, and the end of a line."""
    return torch.tensor([10, *range(32, 127)])


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
def prefix_matching(model: Any, generator: torch.Generator, *, draws: int = 12, rows: int = 16) -> float:
    """u_1 ... u_m u_1 ... u_j: the weight of the best head on u_(j+1), a mean over passages, m and j."""
    attention: Any = attention_of(model)
    found = []
    for _ in range(draws):
        m = int(torch.randint(8, PASSAGE + 1, (1,), generator=generator))
        j = int(torch.randint(m - 1, (1,), generator=generator))
        u = alphabet()[choose_distinct(rows, m, 96, generator)]
        look = attention.weights(torch.cat([u, u[:, : j + 1]], dim=1))
        found.append(head_scores(look, torch.full((rows,), j + 1), torch.ones(rows, dtype=torch.bool))[1])
    return float(torch.stack(found).mean(0).max())


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How much worse the worst middle number of readings is than both ends, in bits a byte; above 0 in every seed, it is shown.

    Copying is judged by its gain: the loss of the second reading alone rises with that of any text.
    """
    told: dict[str, dict[str, Any]] = {}
    questions = {
        "double descent": lambda row: row["held_out"],
        "copying of text": lambda row: -row["copying"]["text"]["gain"],
        "copying at random": lambda row: -row["copying"]["random"]["gain"],
    }
    for question, value in questions.items():
        peaks = {}
        for seed in sorted({row["seed"] for row in rows}):
            found = {float(row["name"]): value(row) for row in rows if row["seed"] == seed and row["name"] != WITHOUT}
            if len(found) > 2:
                ends = max(found[min(found)], found[max(found)])
                peaks[str(seed)] = round(max(v for e, v in found.items() if min(found) < e < max(found)) - ends, 4)
        if peaks:
            told[question] = {"above_both_ends": peaks, "mean": round(statistics.mean(peaks.values()), 4), "ok": min(peaks.values()) > 0}
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Text of which half comes again and again: loss elsewhere, and copying.")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each (default 2)")
    parser.add_argument("--epochs", type=int, nargs="+", default=list(EPOCHS), help="readings of the pool (default 1 10 100 1000)")
    parser.add_argument("--steps", type=int, default=Budget.steps, help=f"of each training (default {Budget.steps})")
    parser.add_argument("--held-out", type=int, default=Budget.held_out, help=f"rows asked about (default {Budget.held_out})")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.repeated", given.json, claims=claims, share=SHARE, row_bytes=LENGTH)
    done, texts = {(row["name"], row["seed"]) for row in table.rows}, stdlib()
    budget = Budget(steps=given.steps, held_out=given.held_out)
    for seed in range(given.seeds):
        for name in [*map(str, given.epochs), WITHOUT]:
            if (name, seed) not in done:
                table.add(**run(name, texts, seed=seed, budget=budget))


if __name__ == "__main__":
    main()

"""Ways to pass something from segment to segment, side by side on one question, at equal weights, tokens and bytes of state.

Sources: arXiv:2010.06891 (Memformer and the first question), arXiv:2305.16300 (the pass key), and those of each system (`memseq cite`).

    python -m memseq.recipes.segments --json results.json
    python -m memseq.recipes.segments --part passkey --json results.json

    recall      `tasks/recall.py`: four symbols of sixteen are shown in the first segment of 12 tokens among noise of the same symbols and
                asked for in the last. Chance is 1/16
    passkey     `tasks/passkey.py` by words, segments of 24: a key of five digits stands anywhere in text that repeats itself, and is asked
                for at its end. Chance is 1/10 a digit

For all: two blocks of width 64 with four heads and `WEIGHTS` weights (what a memory leaves over, the feedforward gets), the gradient of all
segments of a text, the same texts in the same order, of 2, then 3, then 4 segments. A stream holds about `BYTES` at a border:

    memformer           48 slots that both blocks share
    rmt                 48 memory vectors, with noise on what passes a border and without
    armt                8 vectors that write a matrix a layer, of 24 features
    hmt                 the last 46 vectors, one a segment; 4 tokens before it
    compressive         12 inputs a layer, and 12 that were made of 48
    transformer_xl      24 inputs a layer; with the gradient ended at borders, as published, and let through
    lamemo              4 inputs a layer, refreshed: it keeps two vectors for each, and places for the segment
    no memory           the blocks alone

Rows with a number behind the name are the same with another state: 8 slots or vectors, or LaMemo with the 24 inputs of Transformer-XL.
The pass key is asked of memories that can reach it, over 4, 16 and 64 times the segments of training.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from memseq.memories.compressive import CompressiveConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.armt import ARMTConfig
from memseq.models.hmt import HMTConfig
from memseq.models.lamemo import LaMemoConfig
from memseq.models.stack import StackConfig
from memseq.recipes import memformer_recall
from memseq.recipes.fitting import Table, as_wide, fit, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.rmt import D, L, question, rmt, stack
from memseq.state import state_bytes
from memseq.tasks.passkey import PasskeyWordsTask
from memseq.tasks.task import Batch
from memseq.training.curriculum import Curriculum

__all__ = ["BYTES", "PARTS", "WEIGHTS", "Budget", "Part", "contenders", "held", "main", "run"]

WEIGHTS, BYTES = 150_000, 12_300
SLOTS = 48


@dataclass(frozen=True, kw_only=True)
class Part:
    """One question that all are asked."""

    ask: Callable[[int], Any]  # the task over so many segments
    length: int  # tokens of a segment
    asked: tuple[int, ...]  # segments
    rows: tuple[str, ...] | None = None  # who is asked; None: all

    @property
    def vocab_size(self) -> int:
        return self.ask(2).vocab_size


def passkey(n_segments: int) -> PasskeyWordsTask:
    return PasskeyWordsTask(n_words=24 * n_segments)


PARTS = {
    "recall": Part(ask=question, length=L, asked=(4, 8, 16, 64)),
    "passkey": Part(ask=passkey, length=24, asked=(4, 16, 64, 256), rows=("memformer", "rmt, noise 1, 8", "armt", "hmt", "no memory")),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    steps: int = 800
    batch_size: int = 32
    lr: float = 2e-3
    questions: int = 256  # texts of each length


@cache  # widths are found by counting weights
def contenders(part: Part) -> dict[str, Any]:
    """The config of every row."""
    length, V = part.length, part.vocab_size
    at: dict[str, Any] = {"length": length, "vocab_size": V}
    compressive = CompressiveConfig(d_model=D, window=length, compressed=12, rate=4, segment_length=length, gradient="full")
    cache = TransformerXLConfig(d_model=D, window=2 * L, segment_length=length)
    models: dict[str, Any] = {
        "memformer": memformer_recall.memformer(n_slots=SLOTS, **at),
        "memformer, 8": memformer_recall.memformer(**at),
        "rmt": rmt(SLOTS, **at),
        "rmt, noise 1": rmt(SLOTS, noise=1.0, **at),
        "rmt, noise 1, 8": rmt(noise=1.0, **at),
        "armt": ARMTConfig(backbone=stack(length + 8, V), n_slots=8, segment_length=length, key_size=4),
        "hmt": HMTConfig(backbone=stack(length + 4 + 2, V), segment_length=length, n_kept=SLOTS - 2, n_sensory=4),
        "compressive": StackConfig(vocab_size=V, d_model=D, layers=2 * (compressive,)),
        "transformer_xl": StackConfig(vocab_size=V, d_model=D, layers=2 * (cache,)),
        "transformer_xl, full gradient": StackConfig(vocab_size=V, d_model=D, layers=2 * (replace(cache, gradient="full"),)),
        "lamemo": LaMemoConfig(vocab_size=V, d_model=D, n_layers=2, window=4, segment_length=length),
        "lamemo, 24": LaMemoConfig(vocab_size=V, d_model=D, n_layers=2, window=2 * L, segment_length=length),
        "no memory": rmt(0, **at),
    }
    return {name: as_wide(model, WEIGHTS) for name, model in models.items() if part.rows is None or name in part.rows}


def run(part: Part, name: str, *, seed: int = 0, budget: Budget = Budget()) -> dict[str, Any]:
    """Train, and ask over more and more segments. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model = contenders(part)[name].build()
    curriculum = Curriculum(stages=(2, 3, 4), least=2, steps=max(1, budget.steps // 4))

    def loss(step: int) -> Tensor:
        task = part.ask(curriculum.n_segments(curriculum.at(step - 1), seed))
        batch = task.sample(budget.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(budget.batch_size))
        return total / count

    seconds = fit(model, loss, steps=budget.steps, lr=budget.lr)
    row = {"name": name, "seed": seed, "steps": budget.steps, "lr": budget.lr, "cpu_seconds": round(seconds, 1)}
    row |= {"parameters": weights(model), "state_bytes": held(model, part)}
    shares = {n: right(model, part.ask(n).sample(budget.questions, seed=n, split="test"), part.length) for n in part.asked}
    return row | {kind: {str(n): share[kind] for n, share in shares.items()} for kind in ("accuracy", "exact")}


@torch.no_grad()
def right(model: Any, batch: Batch, length: int) -> dict[str, float]:
    """Of what is asked in the last segment: the share of tokens, and of texts with all of them."""
    *before, last = batch.segments(length)
    state = model.init_state(len(batch.inputs))
    for segment in before:
        state = model.advance(segment.tokens, state)
    asked = last.targets >= 0
    hit = (model(last.tokens, state)[0].argmax(-1) == last.targets) | ~asked
    return {"accuracy": round(float(hit[asked].float().mean()), 4), "exact": round(float(hit.all(1).float().mean()), 4)}


@torch.no_grad()
def held(model: Any, part: Part) -> int:
    """Bytes of a stream at a border, after eight segments."""
    state = model.init_state(1)
    for segment in part.ask(8).sample(1, seed=0).segments(part.length):
        state = model.advance(segment.tokens, state)
    return state_bytes(state)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memories of segments on one question, at equal weights, tokens and bytes of state.")
    parser.add_argument("--part", choices=PARTS, default="recall", help="the question (default recall)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each row (default 2; about a minute each)")
    parser.add_argument("--steps", type=int, default=Budget.steps, help=f"of each training (default {Budget.steps})")
    parser.add_argument("--questions", type=int, default=Budget.questions, help=f"texts of each length (default {Budget.questions})")
    parser.add_argument("--only", action="append", help="a row, by its name; may be given again (default: all)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    part = PARTS[given.part]
    table = Table("python -m memseq.recipes.segments", given.json, chance={name: which.ask(2).chance for name, which in PARTS.items()})
    there = {(row["part"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for name in contenders(part):
            if (given.part, name, seed) not in there and (given.only is None or name in given.only):
                table.add(part=given.part, **run(part, name, seed=seed, budget=Budget(steps=given.steps, questions=given.questions)))


if __name__ == "__main__":
    main()

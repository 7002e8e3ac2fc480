"""Ways to pass something from segment to segment, side by side on one question, at equal weights, tokens and bytes of state.

The task is `tasks/recall.py`: four symbols of sixteen are shown in the first segment among noise of the same symbols and asked for in the
last. Chance is 1/16. Sources: arXiv:2010.06891 (Memformer and the question), and those of each system (`memseq cite`).

    python -m memseq.recipes.segments --json results.json

For all: two blocks of width 64 with four heads and `WEIGHTS` weights (what a memory leaves over, the feedforward gets), segments of 12
tokens, the gradient of all segments of a text, the same texts in the same order, of 2, then 3, then 4 segments. A stream holds about
`BYTES` at a border:

    memformer           48 slots that both blocks share
    rmt                 48 memory vectors, with noise on what passes a border and without
    armt                8 vectors that write a matrix a layer, of 24 features
    hmt                 the last 46 vectors, one a segment; 4 tokens before it
    compressive         12 inputs a layer, and 12 that were made of 48
    transformer_xl      24 inputs a layer; with the gradient ended at borders, as published, and let through
    lamemo              4 inputs a layer, refreshed: it keeps two vectors for each, and places for the segment

Rows with a number behind the name are the same with another state: 8 slots or vectors, or LaMemo with the 24 inputs of Transformer-XL.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from memseq.recipes.rmt import D, L, accuracy, question, rmt, stack
from memseq.state import state_bytes
from memseq.training.curriculum import Curriculum

__all__ = ["BYTES", "WEIGHTS", "Budget", "contenders", "held", "main", "run"]

WEIGHTS, BYTES = 150_000, 12_300
SLOTS = 48
ASKED = (4, 8, 16, 64)  # segments


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    steps: int = 800
    batch_size: int = 32
    lr: float = 2e-3
    asked: tuple[int, ...] = ASKED
    questions: int = 256  # texts of each length


def contenders() -> dict[str, Any]:
    """The config of every row."""
    V = question(2).vocab_size
    compressive = CompressiveConfig(d_model=D, window=L, compressed=12, rate=4, segment_length=L, gradient="full")
    cache = TransformerXLConfig(d_model=D, window=2 * L, segment_length=L)
    models: dict[str, Any] = {
        "memformer": memformer_recall.memformer(n_slots=SLOTS),
        "memformer, 8": memformer_recall.memformer(),
        "rmt": rmt(SLOTS),
        "rmt, noise 1": rmt(SLOTS, noise=1.0),
        "rmt, noise 1, 8": rmt(noise=1.0),
        "armt": ARMTConfig(backbone=stack(L + 8), n_slots=8, segment_length=L, key_size=4),
        "hmt": HMTConfig(backbone=stack(L + 4 + 2), segment_length=L, n_kept=SLOTS - 2, n_sensory=4),
        "compressive": StackConfig(vocab_size=V, d_model=D, layers=2 * (compressive,)),
        "transformer_xl": StackConfig(vocab_size=V, d_model=D, layers=2 * (cache,)),
        "transformer_xl, full gradient": StackConfig(vocab_size=V, d_model=D, layers=2 * (replace(cache, gradient="full"),)),
        "lamemo": LaMemoConfig(vocab_size=V, d_model=D, n_layers=2, window=4, segment_length=L),
        "lamemo, 24": LaMemoConfig(vocab_size=V, d_model=D, n_layers=2, window=2 * L, segment_length=L),
    }
    return {name: as_wide(model, WEIGHTS) for name, model in models.items()}


def run(name: str, *, seed: int = 0, budget: Budget = Budget()) -> dict[str, Any]:
    """Train, and ask over more and more segments. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model = contenders()[name].build()
    curriculum = Curriculum(stages=(2, 3, 4), least=2, steps=max(1, budget.steps // 4))

    def loss(step: int) -> Tensor:
        task = question(curriculum.n_segments(curriculum.at(step - 1), seed))
        batch = task.sample(budget.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(budget.batch_size))
        return total / count

    seconds = fit(model, loss, steps=budget.steps, lr=budget.lr)
    return {
        "name": name,
        "seed": seed,
        "steps": budget.steps,
        "lr": budget.lr,
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "state_bytes": held(model),
        "accuracy": {str(n): accuracy(model, question(n).sample(budget.questions, seed=n, split="test"), L) for n in budget.asked},
    }


@torch.no_grad()
def held(model: Any) -> int:
    """Bytes of a stream at a border, after eight segments."""
    state = model.init_state(1)
    for segment in question(8).sample(1, seed=0).segments(L):
        state = model.advance(segment.tokens, state)
    return state_bytes(state)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memories of segments on one question, at equal weights, tokens and bytes of state.")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each row (default 2; about a minute each)")
    parser.add_argument("--steps", type=int, default=Budget.steps, help=f"of each training (default {Budget.steps})")
    parser.add_argument("--only", action="append", help="a row, by its name; may be given again (default: all)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.segments", given.json, chance=question(2).chance)
    there = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for name in contenders():
            if (name, seed) not in there and (given.only is None or name in given.only):
                table.add(**run(name, seed=seed, budget=Budget(steps=given.steps)))


if __name__ == "__main__":
    main()

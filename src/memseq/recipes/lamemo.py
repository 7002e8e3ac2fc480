"""LaMemo: is what is remembered better for having looked at what came after it?

Source: LaMemo (Ji et al., arXiv:2204.07341). The task is `tasks/delayed_meaning.py`: a story of 12 names in 4 phrases,
the meaning of each name said only at its phrase's end; the next segment asks what each name means. Chance is 1/8; who guesses among the
story's meanings has 1/4.

    python -m memseq.recipes.lamemo --json results.json

    lamemo                          refreshes its memory as the next segment begins
    lamemo, not looking ahead       the same, computed anew from what was collected, with nothing added
    transformer_xl                  as published: the gradient ends where the story ends
    transformer_xl, full gradient   what is asked teaches how the story is kept

All are two layers of width 64 with four heads, a memory of the story's 16 tokens, the same batches, steps and rate, and weights
equal within 1 per cent.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.lamemo import LaMemoConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.recipes.machine import keep_freed_memory
from memseq.state import state_bytes
from memseq.tasks.delayed_meaning import DelayedMeaningTask

__all__ = ["contenders", "main", "run"]

D, LAYERS = 64, 2
TASK = DelayedMeaningTask()


def contenders() -> dict[str, Any]:
    """Every row of the table."""
    V, L = TASK.vocab_size, TASK.segment_length
    lamemo: dict[str, Any] = {"vocab_size": V, "d_model": D, "n_layers": LAYERS, "window": L, "segment_length": L}
    cache: dict[str, Any] = {"d_model": D, "window": L, "segment_length": L, "visible": "segment"}  # all of the story, as LaMemo sees it

    def transformer_xl(**more: Any) -> StackConfig:
        return StackConfig(vocab_size=V, d_model=D, layers=LAYERS * (TransformerXLConfig(**cache, **more),))

    return {
        "lamemo": LaMemoConfig(**lamemo),
        "lamemo, not looking ahead": LaMemoConfig(**lamemo, look_ahead=0),
        "transformer_xl": transformer_xl(),
        "transformer_xl, full gradient": transformer_xl(gradient="full"),
    }


def run(config: Any, *, steps: int = 1000, batch_size: int = 32, lr: float = 3e-3, seed: int = 0, asked: int = 1024) -> dict[str, Any]:
    """Train, and ask test questions: accuracy in all, and by how many tokens later a name's meaning came."""
    torch.manual_seed(seed)
    model = config.build()

    def loss(step: int) -> Tensor:
        batch = TASK.sample(batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(batch_size))
        return total / count

    seconds = fit(model, loss, steps=steps, lr=lr)
    batch = TASK.sample(asked, seed=seed, split="test")
    with torch.no_grad():
        scores = TASK.metric(model(batch.inputs, model.init_state(asked))[0], batch)
        held = state_bytes(model(batch.inputs[:1, : TASK.segment_length], model.init_state(1))[1])
    later = {name.partition("=")[2]: round(score, 4) for name, score in scores.items() if name.startswith("accuracy/later=")}
    return {
        "accuracy": round(scores["accuracy"], 4),
        "by_tokens_to_the_meaning": later,
        "parameters": weights(model),
        "state_bytes": held,
        "steps": steps,
        "lr": lr,
        "cpu_seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Delayed meaning: LaMemo beside Transformer-XL.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--only", default="", help="the row of this name alone")
    parser.add_argument("--steps", type=int, default=1000, help="of every training (default 1000)")
    parser.add_argument("--lr", type=float, default=3e-3, help="rate of learning (default 3e-3)")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.lamemo", given.json, chance=TASK.chance, among_shown=TASK.among_shown)
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for name, config in contenders().items():
            if given.only in ("", name) and (name, seed) not in done:
                table.add(name=name, seed=seed, **run(config, steps=given.steps, lr=given.lr, seed=seed))


if __name__ == "__main__":
    main()

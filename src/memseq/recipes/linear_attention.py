"""Recall of pairs by the scalar-gated linear family at equal size of the matrix: what erasing before writing is worth.

Sources: Zoology (Arora et al., arXiv:2312.04927) for the task, `tasks/mqar.py`; the claim is that of the delta rule (DeltaNet,
arXiv:2406.06484; Gated DeltaNet, arXiv:2412.06464): at equal state it recalls pairs that RetNet's fixed decay does not.

    python -m memseq.recipes.linear_attention --json results.json

Two blocks of width 64 with a matrix of 2,048 numbers a layer (Mamba-2 also with four times that), the same batches in every row:
first 4 pairs in 32 tokens, then 8 in 64, then 16 in 128, over a vocabulary of 256; without the easy stages nothing is learned in as
many steps. Asked for 8, 16 and 32 pairs in 128 tokens. Chance is 1/128, guessing among what was shown 1/8, 1/16 and 1/32. RetNet and
linear attention have no short convolution, as published; the row "retnet, convolution" is RetNet with the convolution and SiLU that
the delta rules have, so that what differs is the rule.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.linear_attention import LinearAttentionConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.retnet import RetNetConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import state_bytes
from memseq.tasks.mqar import MQARTask

__all__ = ["PairsRun", "contenders", "main", "run"]

D, H = 64, 2
STAGES = ((200, 4, 32), (150, 8, 64), (250, 16, 128))  # steps, pairs, tokens
ASKED = (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """One training."""

    name: str
    memory: Any
    stages: tuple[tuple[int, int, int], ...] = STAGES
    batch_size: int = 32
    lr: float = 1e-2
    asked: int = 256  # test samples


def contenders() -> list[PairsRun]:
    """Every row of the table."""
    return [
        PairsRun(name="gated_deltanet", memory=GatedDeltaNetConfig(d_model=D, n_heads=H)),
        PairsRun(name="deltanet", memory=DeltaNetConfig(d_model=D, n_heads=H)),
        PairsRun(name="mamba2", memory=Mamba2Config(d_model=D, head_size=64, state_size=16)),
        PairsRun(name="mamba2, four times the state", memory=Mamba2Config(d_model=D, head_size=64, state_size=64)),
        PairsRun(name="retnet, convolution", memory=RetNetConfig(d_model=D, n_heads=H, expand_value=1, conv_width=4)),
        PairsRun(name="retnet", memory=RetNetConfig(d_model=D, n_heads=H, expand_value=1)),
        PairsRun(name="linear_attention", memory=LinearAttentionConfig(d_model=D, n_heads=H)),
    ]


def task(n_pairs: int, n_tokens: int = 128) -> MQARTask:
    return MQARTask(vocabulary=256, n_tokens=n_tokens, n_pairs=n_pairs)


def run(what: PairsRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    tasks = [task(n_pairs, n_tokens) for steps, n_pairs, n_tokens in what.stages for _ in range(steps)]
    model = StackConfig(vocab_size=256, d_model=D, layers=2 * (what.memory,), ff_mult=2.0).build()

    def loss(step: int) -> torch.Tensor:
        batch = tasks[step - 1].sample(what.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        return total / count

    seconds, began = fit(model, loss, steps=len(tasks), lr=what.lr), time.process_time()
    return {
        "name": what.name,
        "seed": seed,
        "steps": len(tasks),
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "state_bytes": state_bytes(model(torch.zeros(1, 8, dtype=torch.int64), model.init_state(1))[1]),
        "accuracy": {str(n): round(accuracy(model, n, rows=what.asked), 4) for n in ASKED},
        "cpu_seconds_of_asking": round(time.process_time() - began, 1),
    }


@torch.no_grad()
def accuracy(model: Any, n_pairs: int, *, rows: int) -> float:
    """On test questions."""
    batch = task(n_pairs).sample(rows, seed=n_pairs, split="test")
    return task(n_pairs).metric(model(batch.inputs, model.init_state(rows))[0], batch)["accuracy"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall of pairs by the scalar-gated linear family, at equal size of the matrix.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first (default 0)")
    parser.add_argument("--only", default="", help="the row of this name alone")
    parser.add_argument("--json", help="write the result to this file; rows it already holds stay until they are measured anew")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.linear_attention", given.json, chance=1 / 128)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for what in contenders():
            if given.only in ("", what.name):
                table.add(**run(what, seed=seed))


if __name__ == "__main__":
    main()

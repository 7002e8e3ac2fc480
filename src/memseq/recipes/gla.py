"""Recall of pairs by memories whose channels fade apart: GLA, HGRN-2, KDA and RWKV-7, at equal size of the matrix, beside Gated DeltaNet.

Source: Zoology (Arora et al., arXiv:2312.04927) for the task, `tasks/mqar.py`; the claim is that of the delta rules (Gated DeltaNet,
arXiv:2412.06464; Kimi Linear, arXiv:2510.26692): at equal state, a memory that erases before it writes recalls more pairs.

    python -m memseq.recipes.gla --json results.json

Two blocks of width 64, two heads with a matrix of 32 x 32 each, so 2048 numbers of matrix a layer in every row; a short convolution
where the layer has one, in GLA and HGRN-2 too; token shift in RWKV-7. Trained on 2 pairs in 16 tokens, then 4 in 32, 8 in 64 and 16 in
128, over a vocabulary of 256, the same batches in every row; asked for 8, 16 and 32 in 128 tokens. Chance is 1/128, guessing among what
was shown 1/8, 1/16 and 1/32. Without the easy stages the Gated DeltaNet had learned nothing (4 %) after 400 steps on 4 to 16 pairs.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.gla import GLAConfig
from memseq.memories.hgrn2 import HGRN2Config
from memseq.memories.kda import KDAConfig
from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.stack import StackConfig
from memseq.recipes.machine import describe
from memseq.state import state_bytes
from memseq.tasks.mqar import MQARTask
from memseq.training.optim import AdamWConfig, clip_gradients

__all__ = ["PairsRun", "contenders", "main", "run"]

D, H = 64, 2
STAGES = ((2, 16, 300), (4, 32, 150), (8, 64, 100), (16, 128, 100))  # pairs, tokens, steps
ASKED = (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """One training. The rate rises over 50 steps, and falls to nothing over the last stage."""

    name: str
    memory: Any
    stages: tuple[tuple[int, int, int], ...] = STAGES
    batch_size: int = 64
    lr: float = 5e-3
    asked: int = 256  # test samples


def contenders() -> list[PairsRun]:
    """Every row of the table."""
    return [
        PairsRun(name="gated_deltanet", memory=GatedDeltaNetConfig(d_model=D, n_heads=H)),
        PairsRun(name="kda", memory=KDAConfig(d_model=D, n_heads=H)),
        PairsRun(name="rwkv7", memory=RWKV7Config(d_model=D, n_heads=H)),
        PairsRun(name="gla", memory=GLAConfig(d_model=D, n_heads=H, key_size=D // H, conv_width=4)),
        PairsRun(name="hgrn2", memory=HGRN2Config(d_model=D, n_heads=H, conv_width=4)),
        PairsRun(name="gla, no convolution", memory=GLAConfig(d_model=D, n_heads=H, key_size=D // H)),
    ]


def task(n_pairs: int, n_tokens: int = 128) -> MQARTask:
    return MQARTask(vocabulary=256, n_tokens=n_tokens, n_pairs=n_pairs)


def run(what: PairsRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model = StackConfig(vocab_size=256, d_model=D, layers=2 * (what.memory,), ff_mult=2.0).build()
    optimizer, began = AdamWConfig(lr=what.lr, weight_decay=0.0).build(model), time.process_time()
    lessons = [(task(pairs, tokens), step / steps) for pairs, tokens, steps in what.stages for step in range(steps)]
    last = len(lessons) - what.stages[-1][2]
    for step, (lesson, done) in enumerate(lessons):
        batch = lesson.sample(what.batch_size, seed=step + 1_000_000 * seed)
        loss, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        (loss / count).backward()
        optimizer.set_rate(min(1.0, (step + 1) / 50) * (1 - done if step >= last else 1.0))
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.process_time() - began
    return {
        "name": what.name,
        "seed": seed,
        "steps": len(lessons),
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(model(torch.zeros(1, 8, dtype=torch.int64), model.init_state(1))[1]),
        "accuracy": {str(n): round(accuracy(model, n, rows=what.asked), 4) for n in ASKED},
    }


@torch.no_grad()
def accuracy(model: Any, n_pairs: int, *, rows: int) -> float:
    """On test questions."""
    batch = task(n_pairs).sample(rows, seed=n_pairs, split="test")
    return task(n_pairs).metric(model(batch.inputs, model.init_state(rows))[0], batch)["accuracy"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall of pairs by memories with a decay per channel, at equal size of the matrix.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first (default 0)")
    parser.add_argument("--steps", type=int, help="optimiser steps of each stage (default: 300, 150, 100, 100)")
    parser.add_argument("--only", default="", help="the row of this name alone")
    parser.add_argument(
        "--json", help="write the result to this file; rows it already holds are kept, or replaced by the same row and seed"
    )
    given = parser.parse_args(arguments)
    path = Path(given.json) if given.json else None
    rows = json.loads(path.read_text())["rows"] if path and path.exists() else []
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for what in contenders():
            if given.only in ("", what.name):
                if given.steps is not None:
                    stages = tuple((pairs, tokens, given.steps) for pairs, tokens, _ in what.stages)
                    what = PairsRun(name=what.name, memory=what.memory, stages=stages)
                row = run(what, seed=seed)
                print(json.dumps(row), flush=True)  # noqa: T201 (rows appear as they are measured)
                rows = [other for other in rows if (other["name"], other["seed"]) != (row["name"], row["seed"])] + [row]
                if path:  # every row is written when it is measured
                    result = {"machine": describe(), "command": "python -m memseq.recipes.gla", "chance": 1 / 128, "rows": rows}
                    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

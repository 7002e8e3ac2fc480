"""Memformer's first claim: gradients through many segments teach a memory what to keep, and it then keeps it for longer.

Source: Memformer (Wu et al., arXiv:2010.06891). The task is `tasks/recall.py`: four symbols of sixteen are shown in the
first segment, noise follows, the last segment asks for them. Chance is 1/16. Noise is drawn from the symbols themselves: only
the marker before them tells the four apart, so a write that was not trained for it keeps the wrong tokens.

    python -m memseq.recipes.memformer_recall --json results.json

What is trained, two blocks of width 64 each, Adam at 1e-3, batch 32, through `replay_backward`:

    memory          S = 4 and S = 8, gradients through all segments
    cut gradients   S = 4, gradients through the last one or two segments only: why replay exists
    no memory       the same blocks without slots: chance
    Transformer-XL  a cache that reaches less far than the question, n_layers W < distance: chance by construction
    GRU             a recurrent state as large as the slots
    length          trained on 2 to 8 segments, asked over up to 128, by the way the memory forgets
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memseq.layers.slots import SlotsConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table
from memseq.state import state_bytes
from memseq.tasks.recall import RecallTask
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.optim import AdamWConfig, clip_gradients
from memseq.training.replay import replay_backward

__all__ = ["RecallRun", "claims", "contenders", "main", "run"]

D, L, SLOTS = 64, 12, 8
TARGETS = {"S=4": 0.99, "S=8": 0.99, "64 segments": 0.95}


@dataclass(frozen=True, kw_only=True)
class RecallRun:
    """One training: what, on which numbers of segments, how far back the gradient flows, for how long."""

    name: str
    model: Any
    train_on: tuple[int, ...] = (4,)
    test_on: tuple[int, ...] = (4,)
    horizon: int | None = None  # segments; None: all of them
    steps: int = 900
    stop_at: float | None = 0.999  # accuracy on the longest training length, looked at every 50 steps
    batch_size: int = 32
    lr: float = 1e-3
    asked: int = 1024  # test samples a length


def question(n_segments: int = 4) -> RecallTask:
    return RecallTask(n_segments=n_segments, segment_length=L, n_noise=0)


VOCABULARY = question().vocab_size


def memformer(n_slots: int = SLOTS, *, length: int = L, vocab_size: int = VOCABULARY, **slots: Any) -> MemformerLMConfig:
    """Two blocks of segment attention that share slots: eight, where nothing else is said."""
    attention = SegmentAttentionConfig(d_model=D, n_heads=4, segment_length=length)
    config = SlotsConfig(d_model=D, n_heads=4, n_slots=n_slots, segment_length=length, **slots)
    return MemformerLMConfig(vocab_size=vocab_size, d_model=D, layers=2 * (attention,), slots=config)


def stack(memory: Any) -> StackConfig:
    return StackConfig(vocab_size=VOCABULARY, d_model=D, layers=2 * (memory,))


def contenders() -> list[RecallRun]:
    """Every row of the table."""
    segment = SegmentAttentionConfig(d_model=D, n_heads=4, segment_length=L)
    far = (4, 8, 16, 32, 64, 128)
    curriculum: dict[str, Any] = {"train_on": (2, 4, 6, 8), "test_on": far, "steps": 1200, "stop_at": None}
    return [
        RecallRun(name="memformer, S=4", model=memformer()),
        RecallRun(name="memformer, S=8", model=memformer(), train_on=(8,), test_on=(8,)),
        RecallRun(name="gradient through 1 segment, S=4", model=memformer(), horizon=1),
        RecallRun(name="gradient through 2 segments, S=4", model=memformer(), horizon=2),
        RecallRun(name="no memory, S=4", model=stack(segment)),
        RecallRun(name="transformer_xl, reach 2 x 12 < 35, S=4", model=stack(TransformerXLConfig(d_model=D, window=L, segment_length=L))),
        RecallRun(name="gru, equal state, S=4", model=stack(GRUConfig(d_model=D, hidden_size=SLOTS * D // 2))),
        RecallRun(name="length, bmn, |v|/R = 0.01", model=memformer(), **curriculum),
        RecallRun(name="length, bmn, |v|/R = 0.125", model=memformer(bias_std=0.125), **curriculum),
        RecallRun(name="length, norm", model=memformer(forget="norm"), **curriculum),
    ]


def run(what: RecallRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask. Accuracy by number of segments; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model = what.model.build()
    cell, optimizer = StreamCell(model), AdamWConfig(lr=what.lr, weight_decay=0.0).build(model)
    choice, began, step = random.Random(seed), time.process_time(), 0
    for step in range(1, what.steps + 1):
        task = question(choice.choice(what.train_on))
        batch = task.sample(what.batch_size, seed=step + 1_000_000 * seed)
        segments = [Segment(*piece) for piece in batch.segments(L)]
        cut = max(0, len(segments) - (what.horizon or len(segments)))
        state = model.init_state(what.batch_size)
        with torch.no_grad():
            for segment in segments[:cut]:
                state = cell.advance(segment, state)
        optimizer.set_rate(min(1.0, step / 30))
        replay_backward(cell, segments[cut:], state, scale=1 / int((batch.labels != -100).sum()))
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if what.stop_at is not None and step % 50 == 0 and accuracy(model, max(what.train_on), rows=128) >= what.stop_at:
            break
    seconds = time.process_time() - began
    return {
        "name": what.name,
        "seed": seed,
        "steps": step,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(model.init_state(1)),
        "accuracy": {str(n): round(accuracy(model, n, rows=what.asked), 4) for n in what.test_on},
    }


@torch.no_grad()
def accuracy(model: Any, n_segments: int, *, rows: int = 1024) -> float:
    """On test questions over `n_segments` segments."""
    task = question(n_segments)
    batch, state = task.sample(rows, seed=n_segments, split="test"), model.init_state(rows)
    *before, last = batch.segments(L)
    for segment in before:
        state = model.advance(segment.tokens, state)
    answers = model(last.tokens, state)[0].argmax(-1)
    right = int((answers == last.targets).sum())
    return right / int((last.targets != -100).sum())


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and what the worst seed reached."""

    def worst(name: str, segments: str) -> float:
        return min(row["accuracy"][segments] for row in rows if row["name"] == name)

    reached = {
        "S=4": worst("memformer, S=4", "4"),
        "S=8": worst("memformer, S=8", "8"),
        "64 segments": worst("length, norm", "64"),
    }
    return {name: {"target": TARGETS[name], "reached": value, "ok": value >= TARGETS[name]} for name, value in reached.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall across segments: what replay teaches and how long it lasts.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the result to this file; rows it holds stay")
    parser.add_argument("--seed", type=int, default=0, help="the first of them (default 0)")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.memformer_recall", given.json, chance=question().chance)
    for what in contenders():
        if given.only in what.name:
            for seed in range(given.seed, given.seed + given.seeds):
                table.add(**run(what, seed=seed))
    if not given.only:
        print(json.dumps(claims(table.rows), indent=1))


if __name__ == "__main__":
    main()

"""RMT's claim: trained on few segments by a curriculum, it remembers over many times as many.

Source: "Scaling Transformer to 1M tokens and beyond with RMT" (Bulatov et al., arXiv:2304.11062). The task is `tasks/recall.py`: four
symbols of sixteen are shown in the first segment, noise of the same symbols follows, the last segment asks for them. Chance is 1/16.

    python -m memseq.recipes.rmt --json results.json

One backbone for all: two blocks of width 64 with attention inside a segment of 12 tokens; replay through all segments; Adam at 1e-3
with a linear fall over the last third, batch 32; a curriculum on the number of segments, half of the windows of full length. A row
ends by processor time.

    rmt, noise      noise on what passes a border while training: the network learns to clean up what it carries; "normed" reads
                    memory vectors of one length (`feed`)
    up to 8         trained on up to eight segments in place of four, for 150 seconds in place of 95; "longer" is on four for as long
    rmt             as published
    armt            a matrix a layer, of more bytes
    no memory       the same backbone, segment by segment: chance

Rows that the file holds already are kept and not run again, so that a long table can be made in parts.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.armt import ARMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table
from memseq.state import state_bytes
from memseq.tasks.recall import RecallTask
from memseq.tasks.task import Batch
from memseq.training.cell import StreamCell
from memseq.training.curriculum import Curriculum
from memseq.training.lanes import Segment
from memseq.training.optim import AdamWConfig, clip_gradients
from memseq.training.replay import replay_backward

__all__ = ["Contender", "accuracy", "claims", "contenders", "main", "question", "run", "trained"]

D, L, SLOTS = 64, 12, 8
UP_TO_FOUR = Curriculum(stages=(2, 3, 4), least=2, steps=None, mastered=0.98)
UP_TO_EIGHT = Curriculum(stages=(2, 3, 4, 8), least=2, steps=None, mastered=0.98)
TARGET = 0.95  # at 64 times the trained length


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row: a model and the processor seconds it trains for."""

    name: str
    model: Any
    seconds: float = 95.0
    curriculum: Curriculum = UP_TO_FOUR
    times: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)  # asked at these multiples of the last stage
    lr: float = 1e-3
    fall: float = 0.3  # share of the time over which the rate falls, at the end
    batch_size: int = 32


def question(n_segments: int) -> RecallTask:
    return RecallTask(n_segments=n_segments, segment_length=L, n_noise=0)


VOCABULARY = question(2).vocab_size


def stack(inputs: int, vocab_size: int = VOCABULARY) -> StackConfig:
    """Two blocks of attention inside segments of `inputs` vectors."""
    layer = SegmentAttentionConfig(d_model=D, n_heads=4, segment_length=inputs)
    return StackConfig(vocab_size=vocab_size, d_model=D, layers=2 * (layer,))


def rmt(n_slots: int = SLOTS, *, length: int = L, vocab_size: int = VOCABULARY, **fields: Any) -> RMTConfig:
    return RMTConfig(backbone=stack(length + 2 * n_slots, vocab_size), n_slots=n_slots, segment_length=length, **fields)


def contenders() -> list[Contender]:
    """Every row of the table."""
    armt = ARMTConfig(backbone=stack(L + SLOTS), n_slots=SLOTS, segment_length=L, key_size=8)
    return [
        Contender(name="rmt, noise 1, up to 8", model=rmt(noise=1.0), seconds=150.0, curriculum=UP_TO_EIGHT),
        Contender(name="rmt, noise 1", model=rmt(noise=1.0)),
        Contender(name="rmt, noise 1, longer", model=rmt(noise=1.0), seconds=150.0, fall=0.5),
        Contender(name="rmt, noise 1, normed", model=rmt(noise=1.0, feed="normed")),
        Contender(name="rmt", model=rmt(), seconds=60.0),
        Contender(name="armt", model=armt, seconds=60.0),
        Contender(name="no memory", model=rmt(0), seconds=15.0),
    ]


def trained(what: Contender, *, seed: int = 0, task: Callable[[int], Any] = question) -> tuple[Any, dict[str, Any]]:
    """The model after its training on `task(n_segments)`, and what there is to say of it. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model, length = what.model.build(), task(what.curriculum.stages[0]).segment_length
    cell, optimizer = StreamCell(model), AdamWConfig(lr=what.lr, weight_decay=0.0, betas=(0.9, 0.99)).build(model)
    curriculum, began, step, mastered = what.curriculum, time.process_time(), 0, []
    progress = curriculum.begin()
    while (spent := (time.process_time() - began) / what.seconds) < 1:
        step += 1
        batch = task(curriculum.n_segments(progress, seed)).sample(what.batch_size, seed=step + 1_000_000 * seed)
        optimizer.set_rate(min(1.0, step / 30, max(0.05, (1 - spent) / what.fall)))
        segments = [Segment(*piece) for piece in batch.segments(length)]
        replay_backward(cell, segments, model.init_state(what.batch_size), scale=1 / int((batch.labels != -100).sum()))
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        score = None
        if step % 50 == 0:
            n = curriculum.stages[progress.stage]
            score = accuracy(model, task(n).sample(128, seed=n, split="test"), length)
        after = curriculum.after(progress, score)
        mastered += [step] * (after.stage > progress.stage)
        progress = after
    return model, {
        "name": what.name,
        "seed": seed,
        "steps": step,
        "stages": list(curriculum.stages[: progress.stage + 1]),
        "stage_mastered_at_step": mastered,
        "cpu_seconds": round(time.process_time() - began, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(model.init_state(1)),
        "trained_on_at_most": curriculum.stages[progress.stage],
    }


def run(what: Contender, *, seed: int = 0, asked: int = 256) -> dict[str, Any]:
    """Train, and ask over more and more segments."""
    model, row = trained(what, seed=seed)
    lengths = [times * what.curriculum.stages[-1] for times in what.times]
    return row | {"accuracy": {str(n): accuracy(model, question(n).sample(asked, seed=n, split="test"), L) for n in lengths}}


@torch.no_grad()
def accuracy(model: Any, batch: Batch, length: int) -> float:
    """Of what is asked in the last segment, in evaluation mode."""
    *before, last = batch.segments(length)
    state, training = model.init_state(len(batch.inputs)), model.training
    model.eval()
    for segment in before:
        state = model.advance(segment.tokens, state)
    answers = model(last.tokens, state)[0].argmax(-1)
    model.train(training)
    return round(int((answers == last.targets).sum()) / int((last.targets != -100).sum()), 4)


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached by the rows with noise, and what the worst seed of each reached."""
    found = {}
    for name in dict.fromkeys(row["name"] for row in rows if "noise" in row["name"]):
        most = str(64 * (UP_TO_EIGHT if name.endswith("up to 8") else UP_TO_FOUR).stages[-1])
        reached = [row["accuracy"][most] for row in rows if row["name"] == name and most in row["accuracy"]]
        value = min(reached, default=0.0)
        found[f"{name}, {most} segments"] = {"target": TARGET, "reached": value, "seeds": len(reached), "ok": value >= TARGET}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Recall over 64 times the trained length.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.rmt", given.json, claims=claims, chance=question(2).chance)
    there = {(row["name"], row["seed"]) for row in table.rows}
    for what in contenders():
        for seed in range(given.first, given.first + given.seeds) if given.only in (None, what.name) else ():
            if (what.name, seed) not in there:
                table.add(**run(what, seed=seed))


if __name__ == "__main__":
    main()

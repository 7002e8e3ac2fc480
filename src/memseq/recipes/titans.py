"""Titans' claims on a processor: a memory that learns by gradient steps overwrites what it knows, and momentum, decay and depth pay.

Source: Titans (Behrouz et al., arXiv:2501.00663), table 5 (ablations); the task is ours, after MQAR (Zoology, arXiv:2312.04927).

    python -m memseq.recipes.titans --json results.json

An episode shows n keys with a value each, in any order, then all keys again with new values, then noise, then asks every key: the
answer is the value shown last. A stream is one episode, or many without a reset, in which all keys are rewritten again and again.
Keys, values and noise have ids of their own. Chance is one over the number of values; a memory that adds up what it was told
instead of replacing it is right half of the time at best.

Every contender has one block of width 64 (a window two, without which attention binds no value to its key) and the same bytes of state
(weights and momentum of the memory; matrices; keys and values of a window), Adam, the same samples. A row is written when it is measured.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.retnet import RetNetConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.stack import StackConfig
from memseq.recipes.machine import describe
from memseq.state import state_bytes
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct
from memseq.training.optim import AdamWConfig, clip_gradients

__all__ = ["RewrittenTask", "TitansRun", "claims", "contenders", "main", "run"]

D = 64
TARGETS = {"rewritten, LMM": 0.95, "rewritten, RetNet at most": 0.6}


@dataclass(frozen=True, kw_only=True)
class RewrittenTask(Task):
    """Tokens: keys 0 to n_keys - 1, then values, then noise."""

    name: ClassVar[str] = "rewritten"
    source: ClassVar[str] = "arXiv:2312.04927"

    n_keys: int = 6
    n_values: int = 16
    n_noise: int = 8  # kinds of noise
    gap: int = 8  # noise between the last value and the first question
    episodes: int = 1

    @property
    def vocab_size(self) -> int:
        return self.n_keys + self.n_values + self.n_noise

    @property
    def length(self) -> int:
        return self.episodes * (5 * self.n_keys + self.gap)

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        episodes = [self._episode(batch_size, generator) for _ in range(self.episodes)]
        inputs, labels = (torch.cat(z, dim=1) for z in zip(*episodes, strict=True))
        number = torch.arange(self.episodes).repeat_interleave(self.length // self.episodes)
        return Batch(inputs, labels, {"episode": number.expand_as(inputs)})

    def _episode(self, B: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n, V = self.n_keys, self.n_values
        shown, asked = [], choose_distinct(B, n, n, generator)
        for _ in range(2):
            keys = choose_distinct(B, n, n, generator)
            values = n + torch.randint(V, (B, n), generator=generator)
            shown.append(torch.stack([keys, values], dim=2).flatten(1))
            answer = torch.empty_like(values).scatter_(1, keys, values)
        noise = n + V + torch.randint(self.n_noise, (B, self.gap), generator=generator)
        inputs = torch.cat([*shown, noise, asked], dim=1)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, -n:] = answer.gather(1, asked)
        return inputs, labels

    def oracle(self, inputs: Tensor) -> Tensor:
        """The value that followed the key last."""
        answers = torch.zeros_like(inputs)
        latest = torch.zeros(len(inputs), self.n_keys, dtype=torch.int64)
        for t in range(inputs.shape[1]):
            key = inputs[:, t : t + 1].clamp(max=self.n_keys - 1)
            answers[:, t : t + 1] = latest.gather(1, key)
            if t:
                value = (inputs[:, t : t + 1] >= self.n_keys) & (inputs[:, t : t + 1] < self.n_keys + self.n_values)
                before = inputs[:, t - 1 : t].clamp(max=self.n_keys - 1)
                bound = value & (inputs[:, t - 1 : t] < self.n_keys)
                latest.scatter_(1, before, torch.where(bound, inputs[:, t : t + 1], latest.gather(1, before)))
        return answers


@dataclass(frozen=True, kw_only=True)
class TitansRun:
    """One training: which memory, on which streams, for how long."""

    name: str
    memory: Any
    train_on: RewrittenTask
    test_on: tuple[RewrittenTask, ...]
    blocks: int = 1
    steps: int = 450
    stop_at: float | None = 0.995  # accuracy on 128 fresh samples, looked at every 50 steps
    batch_size: int = 32
    lr: float = 5e-3
    asked: int = 256  # test streams


def memories() -> dict[str, Any]:
    """Titans' memory with one part taken away at a time, and others with as many bytes of state."""
    full = TitansConfig(d_model=D, n_heads=4, segment_length=8, expansion=1, step=0.3, momentum=0.3)
    return {
        "LMM": full,
        "LMM, no momentum": replace(full, momentum=None),
        "LMM, no decay": replace(full, forget=None),
        "LMM, linear": replace(full, depth=1),
        "LMM, no convolution": replace(full, conv_width=1),
        "Gated DeltaNet": GatedDeltaNetConfig(d_model=D, n_heads=4, key_size=32, value_size=32),
        "RetNet": RetNetConfig(d_model=D, n_heads=4, expand_value=4, conv_width=4),
        "sliding window": SlidingWindowConfig(d_model=D, n_heads=4, window=16),  # two blocks, each with half of the state
    }


def contenders() -> list[TitansRun]:
    """Every row: one episode, and a stream of four, asked over sixteen without a reset."""
    one, four, sixteen = (RewrittenTask(episodes=n) for n in (1, 4, 16))
    rows = []
    for name, memory in memories().items():
        blocks = 2 if name == "sliding window" else 1  # attention without a convolution cannot bind a value to its key in one
        rows.append(TitansRun(name=f"rewritten: {name}", memory=memory, blocks=blocks, train_on=one, test_on=(one,)))
    for name, memory in memories().items():
        if name not in ("sliding window", "LMM, no convolution"):
            rows.append(TitansRun(name=f"episodes: {name}", memory=memory, train_on=four, test_on=(four, sixteen), steps=300, batch_size=8))
    return rows


def run(what: TitansRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    task = what.train_on
    model = StackConfig(vocab_size=task.vocab_size, d_model=D, layers=what.blocks * (what.memory,), ff_mult=2).build()
    optimizer, began, step = AdamWConfig(lr=what.lr, weight_decay=0.0).build(model), time.process_time(), 0
    for step in range(1, what.steps + 1):
        batch = task.sample(what.batch_size, seed=step + 1_000_000 * seed)
        loss, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        (loss / count).backward()
        clip_gradients(optimizer.parameters, 1.0)
        optimizer.set_rate(min(1.0, step / 30))
        optimizer.step()
        optimizer.zero_grad()
        if what.stop_at is not None and step % 50 == 0 and accuracy(model, task, rows=64)["accuracy"] >= what.stop_at:
            break
    seconds = time.process_time() - began
    state = model.advance(torch.zeros(1, 8, dtype=torch.int64), model.init_state(1))
    return {
        "name": what.name,
        "seed": seed,
        "steps": step,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "state_bytes": state_bytes(state),
        "accuracy": {
            str(test.episodes): {k: round(v, 4) for k, v in accuracy(model, test, rows=what.asked).items()} for test in what.test_on
        },
    }


@torch.no_grad()
def accuracy(model: Any, task: RewrittenTask, *, rows: int) -> dict[str, float]:
    """On test streams: of all questions, and of the last episode alone."""
    batch = task.sample(rows, seed=0, split="test")
    scores = task.metric(model(batch.inputs, model.init_state(rows))[0], batch)
    return {"accuracy": scores["accuracy"], "last": scores[f"accuracy/episode={task.episodes - 1}"]}


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and what the worst seed of the memory and the best of RetNet reached."""

    def of(name: str) -> list[float]:
        return [row["accuracy"]["1"]["accuracy"] for row in rows if row["name"] == name]

    found = {}
    if mine := of("rewritten: LMM"):
        found["rewritten, LMM"] = {"target": TARGETS["rewritten, LMM"], "reached": min(mine), "ok": min(mine) >= TARGETS["rewritten, LMM"]}
    if other := of("rewritten: RetNet"):
        target = TARGETS["rewritten, RetNet at most"]
        found["rewritten, RetNet at most"] = {"target": target, "reached": max(other), "ok": max(other) <= target}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Titans: overwriting, episodes without reset, and what each part of the memory is worth.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each row (default 0 1 2)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, help="write the result to this file; rows that it has already are kept")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(given.json.read_text())["rows"] if given.json and given.json.exists() else []
    for seed in given.seeds:
        for what in contenders():
            if given.only not in what.name or any(row["name"] == what.name and row["seed"] == seed for row in rows):
                continue
            rows.append(run(what, seed=seed))
            print(json.dumps(rows[-1]), flush=True)  # noqa: T201 (rows appear as they are measured)
            result: dict[str, Any] = {"machine": describe(), "command": "python -m memseq.recipes.titans", "chance": RewrittenTask().chance}
            result |= {"rows": rows, "claims": claims(rows)}
            if given.json:
                given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Titans' claims on a processor: a memory that learns by gradient steps overwrites what it knows, and momentum, decay and depth pay.

Source: Titans (Behrouz et al., arXiv:2501.00663), table 5 (ablations); the task is ours, after MQAR (Zoology, arXiv:2312.04927).

    python -m memseq.recipes.titans --json results.json

An episode shows n keys with a value each, in any order, then all keys again with new values, then noise, then asks every key: the
answer is the value shown last. A stream is one episode, or many without a reset, in which all keys are rewritten again and again.
Keys, values and noise have ids of their own. Chance is one over the number of values; a memory that adds up what it was told
instead of replacing it is right half of the time at best.

Every contender has one block of width 64 (a window two, without which attention binds no value to its key) and about the same bytes of
state (weights and momentum of the memory; matrices; keys and values of a window), one rate, the same samples: single episodes
first, then streams of four. It is asked over one episode, four and sixteen without a reset. Persistent tokens stand beside attention, so
what they are worth is asked of MAG, whose window of 8 tokens is no help. A row is written when it is measured.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.retnet import RetNetConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.stack import StackConfig
from memseq.models.titans_mag import MAG
from memseq.recipes.fitting import Table, facts, fit
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["RewrittenTask", "TitansRun", "claims", "contenders", "main", "run"]

D = 64
TARGETS = {"LMM": 0.95, "RetNet at most": 0.6}
ASKED = (1, 4, 16)  # episodes without a reset


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
    """One training."""

    name: str
    memory: Any
    blocks: int = 1
    stages: tuple[tuple[int, int, int], ...] = ((400, 1, 32), (200, 4, 8))  # steps, episodes, streams a step
    lr: float = 1e-2
    asked: int = 256  # test streams


def contenders() -> list[TitansRun]:
    """Titans' memory with one part taken away at a time, and others with about as many bytes of state."""
    full = TitansConfig(d_model=D, n_heads=4, segment_length=8, expansion=1, step=0.3, momentum=0.3)
    gated = MAG(d_model=D, n_persistent=8, memory=full, n_heads=4, window=8)
    rows: dict[str, Any] = {
        "LMM": full,
        "LMM, no momentum": replace(full, momentum=None),
        "LMM, no decay": replace(full, forget=None),
        "LMM, linear": replace(full, depth=1),
        "LMM, no convolution": replace(full, conv_width=1),
        "MAG": gated,
        "MAG, no persistent tokens": replace(gated, n_persistent=0),
        "Gated DeltaNet": GatedDeltaNetConfig(d_model=D, n_heads=4, key_size=32, value_size=32),
        "RetNet": RetNetConfig(d_model=D, n_heads=4, expand_value=4, conv_width=4),
        "sliding window": SlidingWindowConfig(d_model=D, n_heads=4, window=16),  # two blocks, each with half of the state
    }
    blocks = {"sliding window": 2}  # attention without a convolution cannot bind a value to its key in one
    return [TitansRun(name=name, memory=memory, blocks=blocks.get(name, 1)) for name, memory in rows.items()]


def run(what: TitansRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    steps = [(RewrittenTask(episodes=episodes), rows) for steps, episodes, rows in what.stages for _ in range(steps)]
    model = StackConfig(vocab_size=RewrittenTask().vocab_size, d_model=D, layers=what.blocks * (what.memory,), ff_mult=2).build()

    def loss(step: int) -> Tensor:
        task, rows = steps[step - 1]
        batch = task.sample(rows, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(rows))
        return total / count

    seconds = fit(model, loss, steps=len(steps), lr=what.lr)
    told = facts(model, name=what.name, seed=seed, steps=len(steps), lr=what.lr, seconds=seconds, read=8)
    return told | {"accuracy": {str(n): accuracy(model, RewrittenTask(episodes=n), rows=what.asked) for n in ASKED}}


@torch.no_grad()
def accuracy(model: Any, task: RewrittenTask, *, rows: int) -> dict[str, float]:
    """On test streams: of all questions, and of the last episode alone."""
    batch = task.sample(rows, seed=0, split="test")
    scores = task.metric(model(batch.inputs, model.init_state(rows))[0], batch)
    return {"accuracy": round(scores["accuracy"], 4), "last": round(scores[f"accuracy/episode={task.episodes - 1}"], 4)}


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached over one episode, and what the worst seed of the memory and the best of RetNet reached."""

    def of(name: str) -> list[float]:
        return [row["accuracy"]["1"]["accuracy"] for row in rows if row["name"] == name]

    found = {}
    if mine := of("LMM"):
        found["LMM"] = {"target": TARGETS["LMM"], "reached": min(mine), "ok": min(mine) >= TARGETS["LMM"]}
    if other := of("RetNet"):
        target = TARGETS["RetNet at most"]
        found["RetNet at most"] = {"target": target, "reached": max(other), "ok": max(other) <= target}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Titans: overwriting, streams without reset, and what each part of the memory is worth.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each row (default 0 1 2)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.titans", given.json, claims=claims, chance=RewrittenTask().chance)
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in given.seeds:
        for what in contenders():
            if given.only in what.name and (what.name, seed) not in done:
                table.add(**run(what, seed=seed))


if __name__ == "__main__":
    main()

"""Mixture of memories: is state that is kept apart worth state that is larger, and does a router find what belongs together?

Source: MoM (Du et al., arXiv:2502.13685), whose published comparisons are with smaller states. Here Gated DeltaNet stands beside it
twice: with as much state as a token uses (activated), and with as much as is kept (total).

    python -m memseq.recipes.mom --json results.json

    mqar          `tasks/mqar.py`, 12 pairs among 48 tokens, vocabulary 128
    interleaved   `tasks/interleaved.py`: four topics share keys, a token names the topic; and the single stream that it is measured by
    load          the share of tokens of each memory, and its entropy, with the balancing loss and without it

Two layers of width 64, 500 steps of Adam at 5e-3, batch 32. MoM: four memories of two heads of 16 x 16, of which a token uses two, and none
shared: 1,024 numbers activated and 2,048 kept in a layer. Gated DeltaNet: four heads of 16 x 16, or two of 32 x 32. Seconds are of
processor time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.mom import MoMConfig, MoMState
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import state_bytes
from memseq.tasks.interleaved import InterleavedRecallTask
from memseq.tasks.mqar import MQARTask
from memseq.tasks.task import Task

__all__ = ["MoMRun", "claims", "contenders", "main", "run"]

D, CHUNK = 64, 16
TOPICS = 4


@dataclass(frozen=True, kw_only=True)
class MoMRun:
    """One training: what, on which task, for how many steps."""

    name: str
    memory: Any
    task: Task
    steps: int = 500
    batch_size: int = 32
    lr: float = 5e-3
    asked: int = 512


def recall() -> MQARTask:
    return MQARTask(vocabulary=128, n_tokens=48, n_pairs=12)


def topics(n: int) -> InterleavedRecallTask:
    """Three pairs a topic and three questions, whatever the number of topics."""
    return InterleavedRecallTask(n_topics=n, topic_tokens=TOPICS, n_pairs=3, n_asked=3, n_keys=6, n_values=8)


def mixture(**options: Any) -> MoMConfig:
    """1,024 numbers activated, 2,048 kept."""
    return MoMConfig(d_model=D, n_heads=2, key_size=16, value_size=16, n_memories=4, n_active=2, shared=False, chunk_size=CHUNK, **options)


def delta(n_heads: int, size: int) -> GatedDeltaNetConfig:
    return GatedDeltaNetConfig(d_model=D, n_heads=n_heads, key_size=size, value_size=size, chunk_size=CHUNK)


def contenders() -> list[MoMRun]:
    """Every row of the tables."""
    activated, total = delta(4, 16), delta(2, 32)
    return [
        MoMRun(name="mqar, mom", memory=mixture(), task=recall()),
        MoMRun(name="mqar, gated_deltanet, activated", memory=activated, task=recall()),
        MoMRun(name="mqar, gated_deltanet, total", memory=total, task=recall()),
        MoMRun(name="interleaved, mom", memory=mixture(), task=topics(TOPICS)),
        MoMRun(name="interleaved, gated_deltanet, activated", memory=activated, task=topics(TOPICS)),
        MoMRun(name="single, mom", memory=mixture(), task=topics(1)),
        MoMRun(name="single, gated_deltanet, activated", memory=activated, task=topics(1)),
        MoMRun(name="interleaved, mom, balance 0", memory=mixture(balance=0.0), task=topics(TOPICS)),
    ]


def run(what: MoMRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask."""
    torch.manual_seed(seed)
    model = StackConfig(vocab_size=what.task.vocab_size, d_model=D, layers=2 * (what.memory,), ff_mult=2.0).build()

    def loss(step: int) -> Tensor:
        batch = what.task.sample(what.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        return total / count

    seconds = fit(model, loss, steps=what.steps, lr=what.lr, weight_decay=0.01)
    return {
        "name": what.name,
        "seed": seed,
        "steps": what.steps,
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "state_bytes": state_bytes(model.init_state(1)),
        **ask(model, what.task, rows=what.asked),
    }


@torch.no_grad()
def ask(model: Any, task: Task, *, rows: int) -> dict[str, Any]:
    """Accuracy on test questions; where there is a router, the share of tokens of each memory, of each layer, and its entropy in bits."""
    batch = task.sample(rows, seed=0, split="test")
    logits, state = model(batch.inputs, model.init_state(rows))
    found: dict[str, Any] = {"accuracy": round(task.metric(logits, batch)["accuracy"], 4)}
    loads = [layer[0].load.sum(0) for layer in state.layers if isinstance(layer[0], MoMState)]
    if loads:
        shares = [load / load.sum() for load in loads]
        found["load"] = [[round(float(s), 3) for s in share] for share in shares]
        found["entropy"] = [round(float(-(share * share.clamp(min=1e-9).log2()).sum()), 3) for share in shares]
    return found


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and the mean over seeds that was reached."""

    def mean(name: str) -> float:
        found = [row["accuracy"] for row in rows if row["name"] == name]
        return sum(found) / len(found)

    mom, activated, total = (mean(f"mqar, {name}") for name in ("mom", "gated_deltanet, activated", "gated_deltanet, total"))
    kept = 100 * (mean("single, mom") - mean("interleaved, mom"))
    lost = 100 * (mean("single, gated_deltanet, activated") - mean("interleaved, gated_deltanet, activated"))
    return {
        "mqar, as good as equal activated state": {"target": round(activated, 4), "reached": round(mom, 4), "ok": mom >= activated},
        "mqar, 0.9 of equal total state": {"target": round(0.9 * total, 4), "reached": round(mom, 4), "ok": mom >= 0.9 * total},
        "interleaved, mom loses at most": {"target": "5 points", "reached": round(kept, 1), "ok": kept <= 5},
        "interleaved, equal activated state loses at least": {"target": "20 points", "reached": round(lost, 1), "ok": lost >= 20},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Several small memories beside one of equal size, and what their router does.")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1; about 2 minutes of one core)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.mom", given.json)
    wanted = contenders()
    for seed in range(given.seeds):
        for what in wanted:
            done = {(row["name"], row["seed"]) for row in table.rows}
            if given.only in what.name and (what.name, seed) not in done:
                row = run(what, seed=seed)
                if {name for name, _ in done} | {what.name} >= {each.name for each in wanted}:
                    table.facts["claims"] = claims([*table.rows, row])
                table.add(**row)


if __name__ == "__main__":
    main()

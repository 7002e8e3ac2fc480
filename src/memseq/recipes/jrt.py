"""Just read twice: does the order of what is read decide what is remembered, and does a second reading help?

Source: Just read twice (Arora et al., arXiv:2407.05483). The task is `tasks/set_disjointness.py`: two lists, 2 and 12 of 28 elements, share
one; which? A stream keeps all of the list that comes first, so the short list first is what a small state can do.

    python -m memseq.recipes.jrt --json results.json

    untrained     the delta rule on random pairs, one reading and two: the squared error of recall; and a plain sum, which only doubles
    trained       two layers of width 64, each a BaseConv and the memory, half of the batches in either order, 500 steps of Adam at 5e-3,
                  batch 64: Based with 6 features a head and Gated DeltaNet with as many rows, reading once and twice; JRT-RNN with
                  the state of Based, whose prefix is all but the question
    MQAR          Based with features of 16 numbers, 8 pairs among 64 tokens

Sizes are such that a row trains in a quarter of a minute on one core. One who remembers the short list and guesses has 1/2.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.based import BasedConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.jrt_rnn import JRTRNNConfig
from memseq.models.jrt_rnn import JRTRNNLM, JRTRNNLMConfig
from memseq.models.stack import StackConfig
from memseq.ops.linear_attention import decay_chunkwise, delta_chunkwise
from memseq.recipes.fitting import Table, facts, fit
from memseq.tasks.mqar import MQARTask
from memseq.tasks.set_disjointness import SetDisjointnessTask
from memseq.tasks.task import IGNORE, Task

__all__ = ["JRTRun", "claims", "contenders", "main", "run", "untrained"]

D, HEADS, FEATURES, ROWS = 64, 2, 2, 6  # 1 + 2 + 3 = 6 features of Based, as many rows of Gated DeltaNet
SHORT, LONG, VOCABULARY = 2, 12, 32


@dataclass(frozen=True, kw_only=True)
class JRTRun:
    """One training: what, on which tasks in turn, for how many steps."""

    name: str
    model: Any
    tasks: dict[str, Task]
    steps: int = 500
    batch_size: int = 64
    lr: float = 5e-3
    asked: int = 1024


def orders(readings: int = 1) -> dict[str, Task]:
    sizes = {"short first": (SHORT, LONG), "long first": (LONG, SHORT)}
    return {name: SetDisjointnessTask(vocabulary=VOCABULARY, n_first=n, n_second=m, readings=readings) for name, (n, m) in sizes.items()}


def stack(memory: Any, vocabulary: int = VOCABULARY) -> StackConfig:
    kind = JRTRNNLMConfig if isinstance(memory, JRTRNNConfig) else StackConfig
    return kind(vocab_size=vocabulary, d_model=D, layers=2 * ((BaseConvConfig(d_model=D), memory),), ff_mult=2.0)


def contenders() -> list[JRTRun]:
    """Every row of the trained table."""
    size: dict[str, Any] = {"d_model": D, "n_heads": HEADS, "feature_size": FEATURES}
    based, prefix = stack(BasedConfig(**size)), stack(JRTRNNConfig(**size))
    delta = stack(GatedDeltaNetConfig(d_model=D, n_heads=HEADS, key_size=ROWS, value_size=D // HEADS))
    recall = stack(BasedConfig(d_model=D, n_heads=HEADS, feature_size=16), 128)
    return [
        JRTRun(name="based", model=based, tasks=orders()),
        JRTRun(name="gated_deltanet", model=delta, tasks=orders()),
        JRTRun(name="jrt_rnn", model=prefix, tasks=orders()),
        JRTRun(name="based, reading twice", model=based, tasks=orders(2)),
        JRTRun(name="gated_deltanet, reading twice", model=delta, tasks=orders(2)),
        JRTRun(name="mqar, based", model=recall, tasks={"8 pairs": MQARTask(vocabulary=128, n_tokens=64, n_pairs=8)}, batch_size=32),
    ]


def logits_of(model: Any, inputs: Tensor) -> Tensor:
    """Logits [B, T, V]; of a model with a prefix those of the last token, its only decoder token, behind zeros."""
    state = model.init_state(len(inputs))
    if not isinstance(model, JRTRNNLM):
        return model(inputs, state)[0]
    _, state = model.prefix_features(inputs[:, :-1], state)
    last, _ = model(inputs[:, -1:], state)
    return F.pad(last, (0, 0, inputs.shape[1] - 1, 0))


def run(what: JRTRun, *, seed: int = 0) -> dict[str, Any]:
    """Train and ask."""
    torch.manual_seed(seed)
    model, tasks = what.model.build(), list(what.tasks.values())

    def loss(step: int) -> Tensor:
        batch = tasks[step % len(tasks)].sample(what.batch_size, seed=step + 1_000_000 * seed)
        return F.cross_entropy(logits_of(model, batch.inputs).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE)

    seconds = fit(model, loss, steps=what.steps, lr=what.lr, weight_decay=0.01)
    told = facts(model, name=what.name, seed=seed, steps=what.steps, lr=what.lr, seconds=seconds)
    return told | {"accuracy": accuracies(model, what.tasks, rows=what.asked)}


@torch.no_grad()
def accuracies(model: Any, tasks: dict[str, Task], *, rows: int) -> dict[str, float]:
    """On test questions of every task."""
    found = {}
    for name, task in tasks.items():
        batch = task.sample(rows, seed=0, split="test")
        found[name] = round(task.metric(logits_of(model, batch.inputs), batch)["accuracy"], 4)
    return found


def untrained(pairs: Sequence[int] = (16, 32, 64), *, size: int = 32, seeds: int = 20) -> list[dict[str, Any]]:
    """The relative squared error of recall of random pairs with unit keys, after one reading and after two; means over seeds."""
    rows = []
    for n in pairs:
        g = torch.Generator().manual_seed(n)
        k, v = (torch.randn(seeds, 1, n, size, generator=g, dtype=torch.float64) for _ in range(2))
        k = k / k.norm(dim=-1, keepdim=True)
        still, whole = k.new_zeros(k.shape[:3]), k.new_ones(k.shape[:3])
        for rule in ("delta", "sum"):
            S, errors = k.new_zeros(seeds, 1, size, size), []
            for _ in range(2):
                if rule == "delta":
                    S = delta_chunkwise(k, k, v, whole, still, S)[1]
                else:
                    S = decay_chunkwise(k, k, v, still, S)[1]
                errors.append(round(float((k @ S - v).square().sum((1, 2, 3)).div(v.square().sum((1, 2, 3))).mean()), 3))
            rows.append({"rule": rule, "pairs": n, "once": errors[0], "twice": errors[1]})
    return rows


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and the mean over seeds that was reached; none while a row lacks.

    A gap is short first less long first, in points.
    """
    if not {what.name for what in contenders()} <= {row["name"] for row in rows}:
        return {}

    def mean(name: str, task: str) -> float:
        found = [row["accuracy"][task] for row in rows if row["name"] == name]
        return sum(found) / len(found)

    def gap(name: str) -> float:
        return round(100 * abs(mean(name, "short first") - mean(name, "long first")), 1)

    found: dict[str, dict[str, Any]] = {}
    for name in ("based", "gated_deltanet"):
        found[f"{name}: orders differ"] = {"target": ">= 15 points", "reached": gap(name), "ok": gap(name) >= 15}
    for name in ("jrt_rnn", "based, reading twice", "gated_deltanet, reading twice"):
        found[f"{name}: orders alike"] = {"target": "<= 5 points", "reached": gap(name), "ok": gap(name) <= 5}
    recall = round(mean("mqar, based", "8 pairs"), 4)
    found["mqar, based"] = {"target": ">= 0.95", "reached": recall, "ok": recall >= 0.95}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Order of reading, and reading twice.")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1; about 2 minutes of one core)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.jrt", given.json, claims=claims, untrained=untrained())
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders():
            if given.only in what.name and (what.name, seed) not in done:
                table.add(**run(what, seed=seed))


if __name__ == "__main__":
    main()

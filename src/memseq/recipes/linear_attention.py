"""Recall of pairs by the linear family at equal size of the matrix: what the rule by which a memory is written is worth.

Sources: Zoology (Arora et al., arXiv:2312.04927) for the task, `tasks/mqar.py`; the claim is that of the delta rules (DeltaNet,
arXiv:2406.06484; Gated DeltaNet, arXiv:2412.06464; Kimi Linear, arXiv:2510.26692): at equal state, a memory that erases before it writes
recalls pairs that one which only fades does not.

    python -m memseq.recipes.linear_attention --part sweep --json results.json
    python -m memseq.recipes.linear_attention --part test --json results.json

Two blocks of width 64, two heads, a matrix of 2,048 numbers a layer in every row of the family (attention, which keeps all tokens, beside
it). The same batches in every row of a seed: 2 pairs in 16 tokens, then 4 in 32, 8 in 64 and 16 in 64.
Linear attention and RetNet have no short convolution, as published; RetNet stands there with that of the delta rules too, and GLA with it
alone, so that what differs is the rule. RWKV-7 shifts tokens instead.

    sweep    every row at every rate of `RATES`, one seed that no test has, asked with questions that no test has
    test     every row at the rate that its own sweep found best (mean of what was asked), on other seeds and test questions
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memseq.errors import InputError
from memseq.memories.attention import AttentionConfig
from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.based import BasedConfig
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.gla import GLAConfig
from memseq.memories.hgrn2 import HGRN2Config
from memseq.memories.kda import KDAConfig
from memseq.memories.linear_attention import LinearAttentionConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.retnet import RetNetConfig
from memseq.memories.rwkv6 import RWKV6Config
from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, facts, fit
from memseq.tasks.mqar import MQARTask

__all__ = ["ENDS", "RATES", "PairsRun", "best_rates", "contenders", "main", "model_of", "run"]

D, H, VOCABULARY = 64, 2, 128
STAGES = ((100, 2, 16), (100, 4, 32), (100, 8, 64), (100, 16, 64))  # steps, pairs, tokens
ASKED = (4, 8, 16)  # pairs in 64 tokens
RATES = (6e-3, 1.5e-2)
SWEEP_SEED = 1000  # of the sweep's trainings and of its questions; no test has either
ENDS = ("attention", "attention, convolution")  # rows whose state is not of the family's size


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """One training."""

    name: str
    memory: Any  # of a block, or several in a row
    stages: tuple[tuple[int, int, int], ...] = STAGES
    ff_mult: float = 2.0  # less where a BaseConv of 25,000 weights stands before the memory, so that rows are of about one size
    batch_size: int = 32
    lr: float = RATES[0]
    asked: int = 256  # samples


def contenders() -> list[PairsRun]:
    """Every row of the table."""
    size: dict[str, Any] = {"d_model": D, "n_heads": H}
    keys: dict[str, Any] = {**size, "key_size": D // H}
    conv = BaseConvConfig(d_model=D)
    return [
        PairsRun(name="attention", memory=AttentionConfig(**size)),
        PairsRun(name="attention, convolution", memory=(conv, AttentionConfig(**size)), ff_mult=0.5),
        PairsRun(name="gated_deltanet", memory=GatedDeltaNetConfig(**size)),
        PairsRun(name="deltanet", memory=DeltaNetConfig(**size)),
        PairsRun(name="kda", memory=KDAConfig(**size)),
        PairsRun(name="rwkv7", memory=RWKV7Config(**size)),
        PairsRun(name="rwkv6", memory=RWKV6Config(**size, mix_rank=8, decay_rank=16)),
        PairsRun(name="mamba2", memory=Mamba2Config(d_model=D, head_size=64, state_size=16)),
        PairsRun(name="gla, convolution", memory=GLAConfig(**keys, conv_width=4)),
        PairsRun(name="gla", memory=GLAConfig(**keys)),
        PairsRun(name="hgrn2, convolution", memory=HGRN2Config(**size, conv_width=4)),
        PairsRun(name="hgrn2", memory=HGRN2Config(**size)),
        PairsRun(name="retnet, convolution", memory=RetNetConfig(**size, expand_value=1, conv_width=4)),
        PairsRun(name="retnet", memory=RetNetConfig(**size, expand_value=1)),
        PairsRun(name="based, convolution", memory=(conv, BasedConfig(**size, feature_size=6)), ff_mult=0.5),
        PairsRun(name="linear_attention, convolution", memory=(conv, LinearAttentionConfig(**size)), ff_mult=0.5),
        PairsRun(name="linear_attention", memory=LinearAttentionConfig(**size)),
    ]


def task(n_pairs: int, n_tokens: int = 64) -> MQARTask:
    return MQARTask(vocabulary=VOCABULARY, n_tokens=n_tokens, n_pairs=n_pairs)


def model_of(what: PairsRun) -> Any:
    return StackConfig(vocab_size=VOCABULARY, d_model=D, layers=2 * (what.memory,), ff_mult=what.ff_mult).build()


def run(what: PairsRun, *, seed: int = 0, questions: int = 0) -> dict[str, Any]:
    """Train, then ask questions of their own seed. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    tasks = [task(n_pairs, n_tokens) for steps, n_pairs, n_tokens in what.stages for _ in range(steps)]
    model = model_of(what)

    def loss(step: int) -> torch.Tensor:
        batch = tasks[step - 1].sample(what.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        return total / count

    seconds = fit(model, loss, steps=len(tasks), lr=what.lr)
    told = facts(model, name=what.name, seed=seed, steps=len(tasks), lr=what.lr, seconds=seconds, read=64)
    return told | {"accuracy": {str(n): round(accuracy(model, n, rows=what.asked, seed=questions + n), 4) for n in ASKED}}


@torch.no_grad()
def accuracy(model: Any, n_pairs: int, *, rows: int, seed: int) -> float:
    """On test questions."""
    batch = task(n_pairs).sample(rows, seed=seed, split="test")
    return task(n_pairs).metric(model(batch.inputs, model.init_state(rows))[0], batch)["accuracy"]


def best_rates(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rate of each name whose sweep has the best mean of what was asked."""

    def score(row: dict[str, Any]) -> float:
        return sum(row["accuracy"].values()) / len(row["accuracy"])

    swept = sorted((row for row in rows if row["part"].startswith("sweep")), key=score)
    return {row["name"]: row["lr"] for row in swept}  # the last of a name is its best


def main(arguments: Sequence[str] | None = None) -> None:
    compare(arguments, contenders(), recipe="linear_attention", about="Recall of pairs by the linear family, at equal size of the matrix.")


def compare(arguments: Sequence[str] | None, rows: Sequence[PairsRun], *, recipe: str, about: str) -> None:
    """The command of a recipe that trains `rows` on pairs: sweep, then test."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--part", choices=("sweep", "test"), required=True, help="find each row's rate, or train at the rates found")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row of the test (default 1)")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed of the first (default 0)")
    parser.add_argument("--only", default="", help="the row of this name alone")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="of the sweep (default {} {})".format(*RATES))
    parser.add_argument("--json", required=True, help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    table = Table(f"python -m memseq.recipes.{recipe}", given.json, chance=2 / VOCABULARY)
    done = {(row["part"], row["name"], row["seed"]) for row in table.rows}
    wanted = [what for what in rows if given.only in ("", what.name)]
    if given.part == "sweep":
        for what in wanted:
            for rate in given.rates:
                part = f"sweep {rate:g}"
                if (part, what.name, SWEEP_SEED) not in done:
                    table.add(part=part, **run(replace(what, lr=rate), seed=SWEEP_SEED, questions=SWEEP_SEED))
        return
    rates = best_rates(table.rows)
    missing = [what.name for what in wanted if what.name not in rates]
    if missing:
        raise InputError(f"{given.json} has no sweep of {missing[0]!r}; run --part sweep --json {given.json} first")
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for what in wanted:
            if ("test", what.name, seed) not in done:
                table.add(part="test", **run(replace(what, lr=rates[what.name]), seed=seed))


if __name__ == "__main__":
    main()

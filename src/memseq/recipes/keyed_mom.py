"""Does a router that reads keys send a pair and its question to one memory, and is a mixture of memories then worth its state?

Source: the claims of MoM (Du et al., arXiv:2502.13685): several memories of which a token uses a few do as well as one as large as all of
them, and what belongs apart does not interfere. `recipes/mom.py` has the same for its own router, which reads the token.

    python -m memseq.recipes.keyed_mom --part pairs --json results.json
    python -m memseq.recipes.keyed_mom --part topics --json results.json

    pairs     `tasks/mqar.py` as in `recipes/capacity.py`: n of 79 keys, each with one of 80 values, then all keys in any order
    topics    `tasks/interleaved.py`: up to four topics of eight pairs share 16 keys, a token names the topic; asked of one topic, where
              nothing interferes, and of all four

One block of width 64 around memories of one head of 16 x 64 numbers: two blocks where it is said, because a router that reads the token
cannot bring a pair and its question together in the first. 400 steps of about 1,024 tokens at a rate of 0.015, of 1 pair at first and of
up to 64 soon. A mixture of four uses all for the first 0.6 of the steps, then one or two; Gated DeltaNet has as many numbers as are used
(1,024 or 2,048), and as many as are kept (4,096) as four heads or as one. "from the start" leaves the first phase out. `agreement` is the
share of the memories that a question reads to which its pair was written, at the best of the three tokens from its value on (by chance
one or two quarters). Seconds are of processor time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.keyed_mom import KeyedMoMConfig, KeyedMoMMemory
from memseq.memories.mom import MoMConfig, MoMMemory
from memseq.models.stack import StackConfig
from memseq.ops.routing import one_hot
from memseq.recipes.capacity import VOCABULARY, ask_pairs, held, pairs, teach_pairs
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import state_bytes
from memseq.tasks.interleaved import InterleavedRecallTask
from memseq.tasks.task import IGNORE

__all__ = ["MixtureRun", "agreement", "claims", "contenders", "main", "run", "topics"]

D, E, ROWS, COLUMNS = 64, 4, 16, 64
ASKED = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
LEARNED = 0.8  # of one topic alone: who did not learn it has nothing to lose to the others
TOPICS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class MixtureRun:
    """One training."""

    name: str
    memory: Any
    n_layers: int = 1
    settle: float = 0.6  # share of the steps in which a mixture by keys uses all memories
    steps: int = 400
    lr: float = 1.5e-2
    tokens: int = 1024  # a step
    questions: int = 1024


def topics(n: int) -> InterleavedRecallTask:
    return InterleavedRecallTask(n_topics=n, topic_tokens=TOPICS[-1], n_pairs=8, n_asked=8, n_keys=16, n_values=16)


def delta(n_heads: int, rows: int = ROWS) -> GatedDeltaNetConfig:
    return GatedDeltaNetConfig(d_model=D, n_heads=n_heads, key_size=rows, value_size=COLUMNS)


def contenders(part: str) -> list[MixtureRun]:
    """Every row of a part."""
    size: dict[str, Any] = {"d_model": D, "n_heads": 1, "key_size": ROWS, "value_size": COLUMNS, "n_memories": E}
    one, two = (KeyedMoMConfig(**size, n_active=n) for n in (1, 2))
    rows = [
        MixtureRun(name="gated_deltanet, 1,024", memory=delta(1)),
        MixtureRun(name="keyed_mom, one of four", memory=one),
        MixtureRun(name="gated_deltanet, 2,048", memory=delta(2)),
        MixtureRun(name="keyed_mom, two of four", memory=two),
        MixtureRun(name="gated_deltanet, 4,096, four heads", memory=delta(4)),
        MixtureRun(name="gated_deltanet, 4,096, one head", memory=delta(1, E * ROWS)),
    ]
    if part == "topics":
        return rows
    token = MoMConfig(**size, n_active=2, shared=False, projections="one", form="dense")
    return [
        *rows,
        MixtureRun(name="keyed_mom, one of four from the start", memory=one, settle=0.0),
        MixtureRun(name="mom, two of four", memory=token),
        MixtureRun(name="mom, two of four, two blocks", memory=token, n_layers=2),
        MixtureRun(name="gated_deltanet, 2,048, two blocks", memory=delta(2), n_layers=2),
        MixtureRun(name="keyed_mom, two of four, two blocks", memory=two, n_layers=2),
    ]


def run(what: MixtureRun, part: str, seed: int) -> dict[str, Any]:
    """Train and ask."""
    torch.manual_seed(seed)
    vocabulary = VOCABULARY if part == "pairs" else topics(1).vocab_size
    model = StackConfig(vocab_size=vocabulary, d_model=D, layers=what.n_layers * (what.memory,), ff_mult=2.0).build()
    mixtures = [memory for memory in model.modules() if isinstance(memory, KeyedMoMMemory)]

    def narrow(share: float) -> None:
        for memory in mixtures:
            memory.n_active = E if share < what.settle else memory.config.n_active

    teach = teach_pairs if part == "pairs" else teach_topics
    seconds = teach(model, steps=what.steps, lr=what.lr, tokens=what.tokens, seed=seed, before=narrow)
    facts = {"part": part, "name": what.name, "seed": seed}
    size = {"cpu_seconds": round(seconds, 1), "parameters": weights(model), "state_bytes": state_bytes(model.init_state(1))}
    if part == "topics":
        return {**facts, **size, "accuracy": {str(n): ask_topics(model, n, questions=what.questions) for n in TOPICS}}
    accuracy = {str(n): ask_pairs(model, n, questions=what.questions) for n in ASKED}
    return {**facts, **size, "held": round(held(accuracy), 2), "accuracy": accuracy, **agreement(model)}


def teach_topics(model: Any, *, steps: int, lr: float, tokens: int, seed: int, before: Any) -> float:
    """Train on one topic, then on one or two, then on one, two or four; processor seconds."""

    def loss(step: int) -> Tensor:
        before((step - 1) / steps)
        most = 1 + min(len(TOPICS) - 1, 2 * len(TOPICS) * (step - 1) // steps)  # all of them from a third on
        g = torch.Generator().manual_seed(step + 10**6 * seed)
        task = topics(TOPICS[int(torch.randint(most, (), generator=g))])
        batch = task.sample(max(8, tokens // task.length), seed=step + 10**6 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(len(batch.inputs)))
        return total / count

    return fit(model, loss, steps=steps, lr=lr)


@torch.no_grad()
def ask_topics(model: Any, n: int, *, questions: int) -> float:
    batch = topics(n).sample(max(1, questions // 8), seed=n, split="test")
    logits, _ = model(batch.inputs, model.init_state(len(batch.inputs)))
    return round(topics(n).metric(logits, batch)["accuracy"], 4)


@torch.no_grad()
def agreement(model: Any, n: int = 24, streams: int = 32) -> dict[str, Any]:
    """Of every mixture: how much of what questions for n pairs read the pair was written to, and the share of tokens of each memory."""
    batch, heard = pairs(n).sample(streams, seed=n, split="test"), []

    def listen(memory: Any, given: tuple[Any, ...]) -> None:
        if isinstance(memory, KeyedMoMMemory):
            heard.append(memory.routes(*given))
        else:
            p = memory.router(given[0])
            heard.append(2 * (one_hot(p.topk(memory.config.n_active, dim=-1).indices, E),))

    mixtures = [memory for memory in model.modules() if isinstance(memory, KeyedMoMMemory | MoMMemory)]
    hooks = [memory.register_forward_pre_hook(listen) for memory in mixtures]
    model(batch.inputs, model.init_state(streams))
    for hook in hooks:
        hook.remove()
    where, asked = (batch.labels != IGNORE).nonzero(as_tuple=True)
    shown = (batch.inputs[where, : 2 * n : 2] == batch.inputs[where, asked, None]).int().argmax(1)
    found: dict[str, Any] = {"agreement": [], "load": []} if heard else {}
    for written, read in heard:
        looked = read[where, asked]
        met = [(written[where, 2 * shown + 1 + late] & looked).sum() / looked.sum() for late in range(3)]
        found["agreement"].append(round(float(max(met)), 3))
        found["load"].append([round(float(share), 3) for share in written.double().mean((0, 1)) / written.double().mean((0, 1)).sum()])
    return found


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached, and the mean over seeds that was reached; of what there are rows for."""

    def mean(part: str, name: str, n: int) -> float | None:
        found = [row["accuracy"][str(n)] for row in rows if (row["part"], row["name"]) == (part, name)]
        return sum(found) / len(found) if found else None

    found: dict[str, dict[str, Any]] = {}
    for many, used in (("one", "1,024"), ("two", "2,048")):
        mixture = f"keyed_mom, {many} of four"
        for n in (24, 32, 48):
            for share, other in ((1.0, used), (0.9, "4,096, four heads"), (0.9, "4,096, one head")):
                reached, target = mean("pairs", mixture, n), mean("pairs", f"gated_deltanet, {other}", n)
                if reached is not None and target is not None:
                    name = f"{n} pairs, {many} of four: {share:g} of {other}"
                    found[name] = {"target": round(share * target, 4), "reached": round(reached, 4), "ok": reached >= share * target}
        for name, most, least in ((mixture, 5.0, None), (f"gated_deltanet, {used}", None, 20.0)):
            single, all_ = mean("topics", name, 1), mean("topics", name, TOPICS[-1])
            if single is not None and all_ is not None and single >= LEARNED:
                lost = round(100 * (single - all_), 1)
                ok = lost <= most if most is not None else lost >= (least or 0.0)
                target = f"{'at most' if most is not None else 'at least'} {most or least:g} points"
                found[f"four topics, {name} loses"] = {"target": target, "reached": lost, "ok": ok}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A mixture of memories whose router reads keys, beside one memory of equal size.")
    parser.add_argument("--part", choices=("pairs", "topics"), required=True)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.keyed_mom", given.json, claims=claims)
    done = {(row["part"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders(given.part):
            if given.only in what.name and (given.part, what.name, seed) not in done:
                table.add(**run(what, given.part, seed))


if __name__ == "__main__":
    main()

"""HMT's claim: topics take turns, and what each told comes back with it, where one memory that all rewrite has lost it.

Source: He et al., "HMT: Hierarchical Memory Transformer" (arXiv:2405.06067). The task is `tasks/topics.py`: each of eight topics tells in
one segment what two keys mean to it, one of 16 values each; then four of the topics come back and are asked. Chance is 1/16.

    python -m memseq.recipes.hmt --json results.json

One backbone for all: two blocks of width 64 with attention inside a segment of 6 tokens; back-propagation through all segments; batch 32,
the same processor seconds; a curriculum of 1, 2, 4 and 8 topics.

    hmt                 the last 16 vectors, one a segment, recalled at the size of an embedding (`feed="normed"`); asked segments are
                        summarised by their own beginning, as published
    hmt, causal         the recall is made when the segment before ends: topics return for a segment before they are asked
    hmt, raw            recalled vectors as they are, as published; and `taught`: with the published loss of retrieval, which says
                        in training where each topic was told
    rmt, 1 vector       what HMT is without its recall; as they are, and at the size of an embedding
    rmt, 16 vectors     a state of as many bytes as HMT's

`recall_map`: how often the segment that HMT recalls most is the one that told what is asked, among all that are kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.hmt import HMT, HMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit_stages, verdict
from memseq.recipes.machine import keep_freed_memory
from memseq.state import state_bytes
from memseq.tasks.task import Batch, Piece
from memseq.tasks.topics import TopicsTask
from memseq.training.curriculum import Curriculum

__all__ = ["Row", "claims", "main", "recalled", "rows", "run", "state_at_border"]

D, KEPT, BATCH, LR = 64, 16, 32, 2e-3
TASK = TopicsTask(segment_length=6)
TOPICS = Curriculum(stages=(1, 2, 4, 8), least=1, steps=None, mastered=0.8)
ASKED = (1, 2, 4, 8, 12)  # topics
TARGETS = {"hmt": 0.95, "rmt, 1 vector": 0.60, "recall map": 0.90}  # at eight topics: at least, at most, at least


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model, how it is taught, and how long a topic is back before it is asked."""

    model: Any
    taught: float = 0.0  # weight of the loss of retrieval
    n_before: int = 0


def rows() -> dict[str, Row]:
    L = TASK.segment_length

    def stack(inputs: int) -> StackConfig:
        layer = SegmentAttentionConfig(d_model=D, n_heads=4, segment_length=inputs)
        return StackConfig(vocab_size=TASK.vocab_size, d_model=D, layers=2 * (layer,))

    def rmt(n_slots: int) -> RMTConfig:
        return RMTConfig(backbone=stack(L + 2 * n_slots), n_slots=n_slots, segment_length=L)

    raw = HMTConfig(backbone=stack(L + 2), segment_length=L, n_kept=KEPT, n_sensory=0, query="current")
    hmt = replace(raw, feed="normed")
    return {
        "hmt": Row(model=hmt),
        "rmt, 1 vector": Row(model=rmt(1)),
        "rmt, 16 vectors": Row(model=rmt(KEPT)),
        "hmt, causal": Row(model=replace(hmt, query="previous", n_summarised=L), n_before=1),
        "hmt, raw": Row(model=raw),
        "hmt, raw, taught": Row(model=raw, taught=0.3),
        "rmt, 1 vector, normed": Row(model=replace(rmt(1), feed="normed")),
        "rmt, 16 vectors, normed": Row(model=replace(rmt(KEPT), feed="normed")),
    }


def topics(n: int, row: Row) -> TopicsTask:
    return replace(TASK, n_topics=n, n_asked=min(n, TASK.n_asked), n_before=row.n_before)


def asked_segments(model: Any, task: TopicsTask, batch: Batch) -> Iterator[tuple[Piece, Any, Int[Tensor, "B j"] | None]]:
    """Each segment that asks, the state before it, and what HMT summarises for it."""
    state, pieces = model.init_state(len(batch.inputs)), batch.segments(task.segment_length)
    for number, piece in enumerate(pieces):
        if number in task.asking:
            about = None
            if isinstance(model, HMT):
                n = model.summarised
                about = pieces[number - 1].tokens[:, -n:] if model.causal else piece.tokens[:, :n]
            yield piece, state, about
        if number + 1 < len(pieces):
            state = model.advance(piece.tokens, state)


def recalled(model: HMT, about: Int[Tensor, "B j"], state: Any) -> Float[Tensor, "B S"]:
    """The weights of the segments read so far, the first of which is the oldest that is kept."""
    return model.attend(model.summarise(about), state)[:, -int(state.count.max()) :]


def loss(model: Any, task: TopicsTask, batch: Batch, taught: float) -> tuple[Tensor, Tensor]:
    """To be minimised, and the mean loss of an answer."""
    nats, taught_by = [], []
    asked = batch.slices["told_in"].unflatten(1, (-1, task.segment_length))
    for number, (piece, state, about) in zip(task.asking, asked_segments(model, task, batch), strict=True):
        total, count, _ = model.loss(piece.tokens, piece.targets, state)
        nats.append(total / count)
        if taught and about is not None:
            told_in = asked[:, number].amax(1, keepdim=True)
            taught_by.append(-recalled(model, about, state).gather(1, told_in).clamp_min(1e-6).log().mean())
    mean = torch.stack(nats).mean()
    return (mean + taught * torch.stack(taught_by).mean() if taught_by else mean), mean.detach()


@torch.no_grad()
def scores(model: Any, task: TopicsTask, batch: Batch) -> dict[str, float]:
    """Of the answers, and of HMT's recall."""
    right, hits = [], []
    asked = batch.slices["told_in"].unflatten(1, (-1, task.segment_length))
    for number, (piece, state, about) in zip(task.asking, asked_segments(model, task, batch), strict=True):
        told_in, places = asked[:, number].amax(1), piece.targets >= 0
        right.append(model(piece.tokens, state)[0].argmax(-1)[places] == piece.targets[places])
        if about is not None:
            weight = recalled(model, about, state)
            hits.append(weight.argmax(1) == told_in - (number - weight.shape[1]))  # the oldest that is kept is not always the first
    found = {"accuracy": round(float(torch.cat(right).float().mean()), 4)}
    return found | ({"recall_map": round(float(torch.cat(hits).float().mean()), 4)} if hits else {})


def state_at_border(model: Any) -> int:
    """Bytes of a stream that has read as many segments as HMT keeps."""
    state = model.init_state(1)
    with torch.no_grad():
        for piece in topics(TASK.topics, Row(model=None)).sample(1, 0).segments(TASK.segment_length)[:KEPT]:
            state = model.advance(piece.tokens, state)
    return state_bytes(state)


def run(name: str, *, seed: int, seconds: float, asked: int = 256) -> dict[str, Any]:
    """Train a row and ask it."""
    torch.manual_seed(seed)
    row = rows()[name]
    model = row.model.build()

    def lesson(n: int, step: int) -> tuple[Tensor, Tensor]:
        task = topics(n, row)
        return loss(model, task, task.sample(BATCH, seed=step + 1_000_000 * seed), row.taught)

    told = fit_stages(model, lesson, TOPICS, seconds=seconds, lr=LR, seed=seed, stages="topics")
    found: dict[str, dict[str, float]] = {}
    for n in ASKED:
        task = topics(n, row)
        for metric, value in scores(model, task, task.sample(asked, seed=n, split="test")).items():
            found.setdefault(metric, {})[str(n)] = value
    return {"name": name, "seed": seed, **told, "state_bytes": state_at_border(model), **found}


def claims(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was to be reached at eight topics, and what the worst seed of HMT and the best of RMT reached."""

    def of(name: str, metric: str) -> list[float]:
        return [row[metric]["8"] for row in found if row["name"] in (name, f"{name}, normed")]

    hmt, rmt, hits = of("hmt", "accuracy"), of("rmt, 1 vector", "accuracy"), of("hmt", "recall_map")
    return {
        "hmt": verdict(TARGETS["hmt"], min(hmt, default=0.0)) | {"seeds": len(hmt)},
        "recall map": verdict(TARGETS["recall map"], min(hits, default=0.0)) | {"seeds": len(hits)},
        "rmt, 1 vector": verdict(TARGETS["rmt, 1 vector"], max(rmt, default=1.0), at_most=True) | {"trainings": len(rmt)},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Topics that take turns: what each told, asked when it is back.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--seconds", type=float, default=18.0, help="of training, each, in processor time (default 18)")
    parser.add_argument("--asked", type=int, default=100, help="samples of each number of topics (default 100)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    command = f"python -m memseq.recipes.hmt --seconds {given.seconds:g}"
    table = Table(command, given.json, claims=claims, chance=TASK.chance)
    there = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.first, given.first + given.seeds):
        for name in rows():
            if given.only in (None, name) and (name, seed) not in there:
                table.add(**run(name, seed=seed, seconds=given.seconds, asked=given.asked))


if __name__ == "__main__":
    main()

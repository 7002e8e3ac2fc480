"""A small language model of novels, from scratch, with each memory and without: what a memory brings, segment by segment and by place.

    python -m memseq.recipes.novels path/to/data --json results.json

The folder holds `books` and `models/stories260K`, whose 512 tokens are used. For all: four blocks of width 64 with four heads and `WEIGHTS`
weights (what a memory leaves over, the feedforward gets), segments of 64 tokens, the same documents of 12 segments in the same order, read
four segments a step with the gradient of all four and the state carried on, AdamW with a cosine.

    no memory         attention inside the segment: what the others are compared with; with the relative positions of Transformer-XL it
                      is what caches are compared with
    window of 64      attention to the last 64 tokens, wherever segments end; of 256: to what all of a step's segments hold
    transformer_xl    64 inputs a layer before the segment; the gradient ends at its border, as published
    compressive       the same, and 64 that were made of the 256 before those
    lamemo            64 inputs a layer, refreshed
    memformer         16 slots that all blocks share
    rmt               8 vectors; with noise on what passes a border, and without
    armt              8 vectors that write a matrix a layer, of 96 features
    hmt               the last 16 vectors, one a segment, and the last 8 tokens read again; without these tokens

On held-out novels, in perplexity a token, as in `recipes/retrofit.py`: inside a segment (every one with a fresh state), beyond it (from
the second of a passage on, the state carried), beyond it with the state of another passage, and beyond it by the place in the segment.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memseq.layers.slots import SlotsConfig
from memseq.memories.compressive import CompressiveConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.armt import ARMTConfig
from memseq.models.hmt import HMTConfig
from memseq.models.lamemo import LaMemoConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, as_wide, facts, fit
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.retrofit import DOCUMENT, L, Novels, novels, scores
from memseq.state import detach

__all__ = ["NO_MEMORY", "WEIGHTS", "claims", "contenders", "main", "run"]

V, D, LAYERS, WEIGHTS = 512, 64, 4, 340_000
WINDOW = 4  # segments of a step
NO_MEMORY = "no memory"


def stack(memory: Any) -> StackConfig:
    return StackConfig(vocab_size=V, d_model=D, layers=LAYERS * (memory,))


def contenders() -> dict[str, Any]:
    """The config of every row."""

    def inside(length: int = L) -> SegmentAttentionConfig:
        return SegmentAttentionConfig(d_model=D, segment_length=length)

    def hmt(k: int) -> HMTConfig:
        return HMTConfig(backbone=stack(inside(L + k + 2)), segment_length=L, n_kept=16, n_sensory=k, feed="normed")

    cache = TransformerXLConfig(d_model=D, window=L, segment_length=L, visible="segment")
    slots = SlotsConfig(d_model=D, n_slots=16, segment_length=L)
    rmt = RMTConfig(backbone=stack(inside(L + 16)), n_slots=8, segment_length=L)
    models: dict[str, Any] = {
        NO_MEMORY: stack(inside()),
        "window of 64": stack(SlidingWindowConfig(d_model=D, window=64)),
        "window of 256": stack(SlidingWindowConfig(d_model=D, window=256)),
        "no memory, relative positions": stack(replace(cache, window=0)),
        "transformer_xl": stack(cache),
        "compressive": stack(CompressiveConfig(d_model=D, window=L, compressed=64, rate=4, segment_length=L)),
        "lamemo": LaMemoConfig(vocab_size=V, d_model=D, n_layers=LAYERS, window=L, segment_length=L),
        "memformer": MemformerLMConfig(vocab_size=V, d_model=D, layers=LAYERS * (inside(),), slots=slots),
        "rmt": rmt,
        "rmt, noise 0.5": replace(rmt, noise=0.5),
        "armt": ARMTConfig(backbone=stack(inside(L + 8)), n_slots=8, segment_length=L, key_size=16, epsilon=1.0),
        "hmt": hmt(8),
        "hmt, reads no tokens again": hmt(0),
    }
    return {name: as_wide(model, WEIGHTS) for name, model in models.items()}


def run(name: str, text: Novels, *, steps: int, batch_size: int = 4, lr: float = 6e-3, seed: int = 0) -> dict[str, Any]:
    """Train on novels and score held-out ones. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model, chance = contenders()[name].build(), np.random.default_rng(seed)
    length = DOCUMENT * L
    places = [(ids, at) for ids in text.train for at in range(0, len(ids) - length - 1, length)]
    state, documents = model.init_state(batch_size), torch.empty(0)

    def loss(step: int) -> torch.Tensor:
        nonlocal state, documents
        part = (step - 1) % (DOCUMENT // WINDOW)
        if part == 0:
            drawn = [places[i] for i in chance.choice(len(places), batch_size, replace=False)]
            documents = torch.from_numpy(np.stack([ids[at : at + length + 1] for ids, at in drawn]))
            state = model.init_state(batch_size)
        window = documents[:, part * WINDOW * L : (part + 1) * WINDOW * L + 1]
        nats, count, after = model.loss(window[:, :-1], window[:, 1:], state)
        state = detach(after)
        return nats / int(count)

    seconds = fit(model, loss, steps=steps, lr=lr, weight_decay=0.01)
    began = time.process_time()
    found = scores(model, text.passages)._asdict()
    told = {"tokens": steps * batch_size * WINDOW * L, "scored_in_seconds": round(time.process_time() - began, 1)}
    return facts(model, name=name, seed=seed, steps=steps, lr=lr, seconds=seconds, read=DOCUMENT * L) | told | found


def claims(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What each row has of the perplexity without a memory, inside a segment and beyond it; less than 1 is gained."""
    without = {row["seed"]: row for row in rows if row["name"] == NO_MEMORY}
    found = {}
    for row in rows:
        if row["name"] != NO_MEMORY and row["seed"] in without:
            of = {f"{place}, of no memory": round(row[place] / without[row["seed"]][place], 4) for place in ("inside", "beyond")}
            found[f"{row['name']}, seed {row['seed']}"] = of | {"beyond, of another's": round(row["beyond"] / row["anothers"], 4)}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A small language model of novels with each memory and without.")
    parser.add_argument("data", type=Path, help="a folder that holds models/stories260K and books")
    parser.add_argument("--steps", type=int, default=1600, help="of each training, of 1,024 tokens (default 1600)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", action="append", help="a row, by its name; may be given again (default: all)")
    parser.add_argument("--rows", type=int, default=96, help="held-out passages of 8 segments (default 96)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    text = novels(given.data, rows=given.rows, segments=8)
    table = Table(f"python -m memseq.recipes.novels DATA --steps {given.steps}", given.json, claims=claims, segment_length=L)
    there = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for name in contenders():
            if (given.only is None or name in given.only) and (name, seed) not in there:
                table.add(**run(name, text, steps=given.steps, seed=seed))


if __name__ == "__main__":
    main()

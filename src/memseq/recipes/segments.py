"""Ways to pass something from segment to segment, side by side on one question.

The task is `tasks/recall.py`: four symbols of sixteen are shown in the first segment among noise of the same symbols and asked for in the
last. Chance is 1/16. Sources: arXiv:2010.06891 (Memformer and the question), and those of each system (`memseq cite`).

    python -m memseq.recipes.segments --json results.json

For all: two blocks of width 64 with four heads, segments of 12 tokens, replay through all segments, a curriculum up to four segments, Adam
at 1e-3 with a linear fall over the last third, batch 32, and the same processor seconds (`recipes/rmt.py`). Slots and memory vectors are
8; the windows of caches are such that two layers reach the question over four segments:

    memformer           8 slots that both blocks share
    rmt, armt           8 memory vectors, with noise on what passes a border and without; 8 vectors that write a matrix a layer
    hmt                 the last 8 vectors, one a segment; 4 tokens before it
    compressive         12 inputs a layer, and 9 that were made of 36
    transformer_xl      24 inputs a layer; with the gradient ended at borders, as published, and let through
    lamemo              24 inputs a layer, refreshed

`state_bytes` is what a stream holds at a border after eight segments.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from memseq.memories.compressive import CompressiveConfig
from memseq.memories.transformer_xl import TransformerXLConfig
from memseq.models.armt import ARMTConfig
from memseq.models.hmt import HMTConfig
from memseq.models.lamemo import LaMemoConfig
from memseq.models.stack import StackConfig
from memseq.recipes import memformer_recall
from memseq.recipes.fitting import Table
from memseq.recipes.rmt import SLOTS, Contender, D, L, question, rmt, run, stack
from memseq.state import state_bytes

__all__ = ["contenders", "held", "main"]

SECONDS = 30.0
TIMES = (1, 2, 4, 16)  # of four segments


def contenders() -> list[Contender]:
    """Every row of the table."""
    V = question(2).vocab_size
    compressive = CompressiveConfig(d_model=D, window=L, compressed=9, rate=4, segment_length=L, gradient="full")
    cache = TransformerXLConfig(d_model=D, window=2 * L, segment_length=L)
    models: dict[str, Any] = {
        "memformer": memformer_recall.memformer(),
        "rmt": rmt(),
        "rmt, noise 1": rmt(noise=1.0),
        "hmt": HMTConfig(backbone=stack(L + 4 + 2), segment_length=L, n_kept=SLOTS, n_sensory=4),
        "compressive": StackConfig(vocab_size=V, d_model=D, layers=2 * (compressive,)),
        "transformer_xl": StackConfig(vocab_size=V, d_model=D, layers=2 * (cache,)),
        "transformer_xl, full gradient": StackConfig(vocab_size=V, d_model=D, layers=2 * (replace(cache, gradient="full"),)),
        "armt": ARMTConfig(backbone=stack(L + SLOTS), n_slots=SLOTS, segment_length=L, key_size=8),
        "lamemo": LaMemoConfig(vocab_size=V, d_model=D, n_layers=2, window=2 * L, segment_length=L),
    }
    return [Contender(name=name, model=model, seconds=SECONDS, times=TIMES) for name, model in models.items()]


@torch.no_grad()
def held(config: Any) -> int:
    """Bytes of a stream at a border, after eight segments."""
    model = config.build().eval()
    state = model.init_state(1)
    for segment in question(8).sample(1, seed=0).segments(L):
        state = model.advance(segment.tokens, state)
    return state_bytes(state)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memories of segments on one question, at equal width, depth and seconds.")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.segments", given.json, chance=question(2).chance)
    there = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders():
            if (what.name, seed) not in there and given.only in (None, what.name):
                table.add(**run(what, seed=seed) | {"state_bytes": held(what.model)})


if __name__ == "__main__":
    main()

"""Titans' memory on real text: beside Gated DeltaNet and a window of near tokens, of equal weights and state, on equal bytes.

Source: Titans (Behrouz et al., arXiv:2501.00663), tables 1 and 5, at the size of a desk.

    python -m memseq.recipes.titans_text stdlib --json results.json
    python -m memseq.recipes.titans_text path/to/books --steps 1000        a folder with a books.csv, or any text

Blocks of one memory and a feedforward, whose width is what makes all contenders equal in weights. The bytes of state a layer: weights and
momentum of four perceptrons of 32, 32 and 32 units; four matrices of 64 x 64; keys and values of 68 tokens. `LMM, linear` has a matrix
in each head, which is half of that; with `forget 0.5` it begins by forgetting within a few tokens, as Gated DeltaNet does, where the others
begin at 0.01. `to first`: forgetting draws the weights to those that a stream begins with. Two have wider keys and values, as Gated
DeltaNet has: `eight heads`, two layers without momentum, and `online`, four matrices of 46 x 46 and their momentum, with a gradient
at every token's own weights (without momentum: of 64 x 64); its heads begin by forgetting at four rates, as those of Gated DeltaNet
do. Every contender reads the same bytes in the same order at one rate; seconds are of processor time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, as_wide, weights_of
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.memformer_text import TextComparison, opened, run

__all__ = ["SHAPE", "contenders", "main"]

SHAPE = TextComparison(d_model=128, n_layers=2, n_heads=4, segment_length=64, window=68, batch_size=16, horizon=2, scored=1 << 16)


def contenders(what: TextComparison) -> dict[str, StackConfig]:
    """The config of every contender, equal in weights to within a thousandth."""
    shape: dict[str, Any] = {"d_model": what.d_model, "n_heads": what.n_heads}
    full = TitansConfig(**shape, expansion=1, segment_length=16)
    twice = 2 * what.d_model // what.n_heads
    half: dict[str, Any] = {"n_heads": 2 * what.n_heads, "head_size": what.d_model // what.n_heads}
    eight = replace(full, **half, forget=0.5, step=0.2, momentum=None, retention="first")
    strict: dict[str, Any] = {"depth": 1, "segment_length": 1, "gradient_limit": None}
    online = replace(full, **strict, head_size=46, forget=(0.03, 0.1, 0.3, 0.7), step=0.5, momentum=0.3, retention="first")
    rows: dict[str, Any] = {
        "LMM": full,
        "Gated DeltaNet": GatedDeltaNetConfig(**shape, key_size=twice, value_size=twice),
        "sliding window": SlidingWindowConfig(**shape, window=what.window),
        "LMM, linear": replace(full, depth=1),
        "LMM, linear, forget 0.5": replace(full, depth=1, forget=0.5),
        "LMM, forget 0.5": replace(full, forget=0.5, step=0.4),
        "LMM, forget 0.5, to first": replace(full, forget=0.5, step=0.4, retention="first"),
        "LMM, eight heads, to first": eight,
        "LMM, online": replace(online, retention="zero"),
        "LMM, online, to first": online,
        "LMM, online, no momentum, to first": replace(online, momentum=None, head_size=twice),
        "LMM, no momentum": replace(full, momentum=None),
        "LMM, no decay": replace(full, forget=None),
        "LMM, no convolution": replace(full, conv_width=1),
    }
    stacks = {
        name: StackConfig(vocab_size=256, d_model=what.d_model, layers=what.n_layers * (memory,), ff_mult=4.0)
        for name, memory in rows.items()
    }
    size = weights_of(stacks["LMM"])
    return {name: as_wide(stack, size) for name, stack in stacks.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Titans, Gated DeltaNet and a window on text, at equal weights, state and bytes.")
    parser.add_argument("corpus", help="stdlib, a folder of books with a books.csv, or a file or folder of text")
    parser.add_argument("--steps", type=int, default=500, help="of 2,048 bytes for each contender (default 500)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="trainings of each contender (default 0)")
    parser.add_argument("--only", nargs="*", default=[], help="contenders of these names alone")
    parser.add_argument("--lr", type=float, default=SHAPE.lr, help=f"the highest rate of all (default {SHAPE.lr})")
    parser.add_argument("--scored", type=int, default=SHAPE.scored, help=f"held-out bytes (default {SHAPE.scored})")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    what, text = replace(SHAPE, lr=given.lr, scored=given.scored), opened(given.corpus)
    table = Table("python -m memseq.recipes.titans_text", given.json, corpus=given.corpus, shape=vars(what))
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in given.seeds:
        for name, config in contenders(what).items():
            if (not given.only or name in given.only) and (name, seed) not in done:
                row = run(config, text, what, steps=given.steps, seed=seed)
                table.add(name=name, **{key: value for key, value in row.items() if key != "by_position"})


if __name__ == "__main__":
    main()

"""Does the memory pay on real text? Memformer beside models of equal size without slots, by time and by tokens.

Source: Memformer (Wu et al., arXiv:2010.06891), its language-modelling table, at the size of a desk.

    python -m memseq.recipes.memformer_text stdlib --minutes 5 --json results.json
    python -m memseq.recipes.memformer_text path/to/books --minutes 5        a folder with a books.csv, or any text

All contenders have the width, depth, heads, optimiser, batch and text of the same run, and as many weights: what slots
cost in parameters the others get as wider feedforwards.

    memformer           slots, written once a segment, beside a window of near tokens (or `--near transformer_xl`: beside
                        Transformer-XL's attention), read in every block (or in those of `--reading`)
    window, no slots    the window alone: a Transformer with a sliding window of keys and values
    no memory           the same Transformer that sees its own segment only
    transformer_xl      relative positions and a cache with stopped gradients

Equal time: each trains for `--minutes` of training steps, on a CPU counted in processor time, which does not run while other
programs hold the cores. Equal tokens: each trains on as many tokens as the slowest of
them had read. Scored on held-out text, with the state carried through each document, and cleared at every segment.
Gradients are those of full back-propagation through `horizon` segments, which replay equals; where a window's activations
fit the memory, one graph is the faster way to them.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from memseq.models.presets import preset
from memseq.recipes.evaluate_text import curves, first_tokens
from memseq.recipes.fitting import as_wide, weights_of
from memseq.recipes.machine import describe, keep_freed_memory
from memseq.tasks.text import books, open_text, stdlib
from memseq.tasks.tokenizers import Bytes
from memseq.training.backends import Backpropagation
from memseq.training.loop import TrainingConfig, train
from memseq.training.optim import AdamWConfig, MuonConfig, WarmupCosine

__all__ = ["TextComparison", "as_large_as", "contenders", "main", "run"]


@dataclass(frozen=True, kw_only=True)
class TextComparison:
    """The shape and the training that all contenders share."""

    d_model: int = 192
    n_layers: int = 4
    n_heads: int = 4
    segment_length: int = 32
    window: int = 32  # tokens that near attention sees
    n_slots: int = 16
    near: Literal["sliding_window", "transformer_xl"] = "sliding_window"  # what Memformer's blocks have beside the slots
    reading: str = "all"  # the blocks that read the slots, such as 1,3
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch_size: int = 32
    horizon: int = 4
    lr: float = 2e-3
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    scored: int = 1 << 18  # held-out tokens


def contenders(what: TextComparison) -> dict[str, Any]:
    """The config of every contender, equal in weights to within a thousandth."""
    names = ("d_model", "n_layers", "n_heads", "segment_length", "window", "n_slots")
    shape = {name: getattr(what, name) for name in names}
    memformer = preset("memformer", "tiny", **shape)
    near = preset(what.near, "tiny", **shape).layers
    reading = None if what.reading == "all" else tuple(int(block) for block in what.reading.split(","))
    memformer = replace(memformer, layers=near, reading=reading)
    others = {"window, no slots": "sliding_window", "no memory": "segment_attention", "transformer_xl": "transformer_xl"}
    return {"memformer": memformer} | {name: as_large_as(memformer, preset(system, "tiny", **shape)) for name, system in others.items()}


def as_large_as(model: Any, other: Any) -> Any:
    """`other` with its feedforward as wide as gives it the parameters of `model`."""
    return as_wide(other, weights_of(model))


def run(
    config: Any, text: tuple[Any, Any], what: TextComparison, *, minutes: float | None = None, steps: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Train one contender and score it."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, (learning, aside) = config.build().to(device), text
    training = TrainingConfig(
        minutes=minutes,
        clock="wall" if device == "cuda" else "processor",
        steps=steps,
        batch_size=what.batch_size,
        segment_length=what.segment_length,
        horizon=what.horizon,
        optimizer=MuonConfig(lr=what.lr, adamw=AdamWConfig(lr=what.lr)) if what.optimizer == "muon" else AdamWConfig(lr=what.lr),
        rate=WarmupCosine(warmup=50),
        backend=Backpropagation(),
        dtype=what.dtype,
        seed=seed,
        save_every=1_000_000,
    )
    with tempfile.TemporaryDirectory() as out:
        ended = train(model, training.lanes(learning), training, out, quiet=True)
    model.eval()
    carried, cleared = curves(model, first_tokens(aside, what.scored), Bytes(), what.segment_length)
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": ended.steps,
        "tokens": ended.tokens,
        "seconds": round(ended.seconds, 1),
        "dtype": ended.dtype,
        "bits_per_byte": round(carried.bits_per_byte, 4),
        "bits_per_byte_cleared": round(cleared.bits_per_byte, 4),
        "state_bytes": carried.state_bytes,
        "by_position": [{"first": b.first, "last": b.last, "bits_per_byte": round(b.bits_per_byte, 4)} for b in carried.bins],
    }


def opened(corpus: str) -> tuple[Any, Any]:
    """(text to learn, text to score): `stdlib`, a folder of books with a table of splits, or any text."""
    if corpus == "stdlib":
        return stdlib()
    if (Path(corpus) / "books.csv").is_file():
        return books(corpus, "train"), books(corpus, "valid")
    return open_text([corpus]).split()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Memformer and models of equal size without slots, on text, at equal time and tokens.")
    parser.add_argument("corpus", help="stdlib, a folder of books with a books.csv, or a file or folder of text")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training steps for each contender (default 5)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each contender (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="the first of them (default 0)")
    parser.add_argument("--only", default="", help="contenders whose name contains this, or one of these with commas between")
    parser.add_argument("--no-equal-tokens", action="store_true", help="leave out the comparison at equal tokens")
    parser.add_argument("--json", help="write the result to this file")
    for field, value in vars(TextComparison()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=type(value), default=value, help=f"default {value}")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    what = TextComparison(**{name: getattr(given, name) for name in TextComparison.__dataclass_fields__})
    chosen = {name: config for name, config in contenders(what).items() if any(part in name for part in given.only.split(","))}
    text, rows = opened(given.corpus), []
    corpus = given.corpus if given.corpus == "stdlib" else Path(given.corpus).resolve().name
    shown = " ".join(sys.argv[2:] if arguments is None else arguments[1:]).partition(" --json")[0]
    command = f"python -m memseq.recipes.memformer_text {corpus} {shown}"
    told = {"machine": describe(), "command": command, "corpus": corpus, "shape": vars(what), "rows": rows}

    def keep(row: dict[str, Any]) -> None:
        """Show the row, and write what there is: a run that is cut short keeps what it measured."""
        rows.append(row)
        print(json.dumps({key: value for key, value in row.items() if key != "by_position"}), flush=True)
        if given.json:
            Path(given.json).write_text(json.dumps(told, indent=1) + "\n")

    for seed in range(given.seed, given.seed + given.seeds):
        timed: dict[str, dict[str, Any]] = {name: {"name": name, "budget": "equal time"} for name in chosen}
        for name, config in chosen.items():
            timed[name] |= run(config, text, what, minutes=given.minutes, seed=seed)
            keep(timed[name])
        if not given.no_equal_tokens:
            fewest = min(row["steps"] for row in timed.values())
            for name, config in chosen.items():
                again = timed[name] if timed[name]["steps"] == fewest else run(config, text, what, steps=fewest, seed=seed)
                keep({"name": name} | again | {"budget": "equal tokens"})


if __name__ == "__main__":
    main()

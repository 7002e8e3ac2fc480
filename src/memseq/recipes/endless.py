"""A million tokens through every memory: finite, as many bytes as at the beginning, and the last token as fast as the first.

    python -m memseq.recipes.endless --json results.json

Every system that `memseq.models.presets` builds and that is bounded, small (`SHAPE`) and as it is initialised: an untrained memory is the
harder case for what must not grow, because nothing has taught its gates to forget. Tokens are random, read in pieces; pieces are whole
segments, so that bytes are compared at borders and a step at one place of its segment. Rows that the file holds already are kept.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from memseq.models.presets import preset, systems_with_presets
from memseq.recipes.fitting import Table
from memseq.recipes.machine import keep_freed_memory
from memseq.state import is_finite, state_bytes

__all__ = ["endless", "main", "million"]

SHAPE: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 2, "segment_length": 40, "n_slots": 4, "window": 40}


@torch.no_grad()
def million(model: Any, *, tokens: int = 1_000_000, piece: int = 2000, rounds: int = 400) -> dict[str, Any]:
    """Read one stream, and compare a step after its first piece with one at its end; the two take turns, so that both meet the same
    machine. Times are of the processor."""
    generator, state = torch.Generator().manual_seed(0), model.init_state(1)
    began, sizes, finite, first = time.process_time(), set[int](), True, state
    for start in range(0, tokens, piece):
        read = torch.randint(256, (1, min(piece, tokens - start)), generator=generator)
        h, state = model.features(read, state)
        first = first if start else state
        sizes.add(state_bytes(state))
        finite = finite and bool(h.isfinite().all()) and is_finite(state)
    spent, token = time.process_time() - began, torch.zeros(1, dtype=torch.int64)
    times: dict[str, list[float]] = {"first": [], "last": []}
    for turn in range(rounds + 20):
        for place, at in (("first", first), ("last", state)) if turn % 2 else (("last", state), ("first", first)):
            began = time.process_time()
            model.step(token, at)
            if turn >= 20:
                times[place].append(time.process_time() - began)
    medians = {place: 1e3 * statistics.median(values) for place, values in times.items()}
    return {
        "tokens": tokens,
        "finite": finite,
        "bytes": sorted(sizes),
        "read_seconds": round(spent, 1),
        "step_ms": {place: round(value, 4) for place, value in medians.items()},
        "last_over_first": round(medians["last"] / medians["first"], 3),
    }


def endless() -> list[str]:
    """The systems with a preset that are bounded."""
    return [name for name in systems_with_presets() if preset(name, **SHAPE).build().bounded]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A million tokens through every bounded memory.")
    parser.add_argument("--only", default="", help="systems, with commas between (default: all)")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each stream (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=400, help="steps that are timed at either end (default %(default)s)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds stay")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.endless", given.json, shape=SHAPE)
    there = {row["name"] for row in table.rows}
    for name in given.only.split(",") if given.only else endless():
        if name not in there:
            torch.manual_seed(0)
            table.add(name=name, **million(preset(name, **SHAPE).build().eval(), tokens=given.tokens, rounds=given.rounds))


if __name__ == "__main__":
    main()

"""All systems that read a stream, on one question: which value stands with a key, by distance and by load.

    noise   [k_1: v_1] ... [k_n: v_n]   noise of d tokens   [k_i?] ...          n: the load, d: the distance

A fact is one token, so that nobody has to learn first to bind neighbours, which takes longer than the time there is: 16 keys times 8
values are 128 facts. The keys of a stream are distinct, a question is one token of 16, the answer one of 8 values. Chance is 1/8; who
remembers only which values were shown says one of those. Training scores all n questions, in an order of their own. Asked is beyond what
was trained: one question to a fork of the stream (`probes/asking.py`), at `DISTANCES` and `LOADS`.

    python -m memseq.recipes.recall_table --json results.json

Equal for all: two blocks of width 64 (`SHAPE`), the number of weights (what a memory leaves over, the feedforward gets; `as_wide`), and the
processor seconds of training at each rate, of which the better by questions of its own is shown (`chosen`). Loads and distances grow
with the share of the time that is spent (`STAGES`), for all alike: who is fast reads more. Gradients are those of full back-propagation
through the window, as far as a system lets them.

Rows that the file holds already are not run again, so that the table can be made in parts.
"""

import argparse
import bisect
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError, nearest
from memseq.memories.atlas import DeepTransformersConfig, DotConfig
from memseq.models.presets import preset, systems_with_presets
from memseq.models.stack import StackConfig
from memseq.probes.asking import Alphabet, ask, read_on
from memseq.recipes.fitting import Table, as_wide, fit_within, weights_of
from memseq.recipes.machine import keep_freed_memory
from memseq.state import select, state_bytes
from memseq.tasks.task import choose_distinct

__all__ = ["DISTANCES", "LOADS", "Budget", "Facts", "chosen", "config_of", "contenders", "lesson", "main", "recall", "run"]

N_KEYS, N_VALUES, N_NOISE = 16, 8, 16
FACTS = N_KEYS * N_VALUES  # tokens: facts, questions, values, noise
V = FACTS + N_KEYS + N_VALUES + N_NOISE
ALPHABET = Alphabet(keys=FACTS + torch.arange(N_KEYS), values=FACTS + N_KEYS + torch.arange(N_VALUES))
SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 2, "segment_length": 16, "n_slots": 8, "window": 16}
WEIGHTS = 160_000
RATES = (1e-2, 3e-3)
BATCH = 16
STAGES = ((0.1, 2, 8), (0.4, 4, 32), (1.0, 8, 32))  # until this share of the time: facts, and tokens between, at most
BEFORE = 8  # tokens before the facts, at most
LOADS = (1, 2, 4, 8, 16)
DISTANCES = (0, 16, 32, 64, 128, 256, 512)
SEEDS = {"chosen": 1000, "asked": 2000}  # of questions that no training has


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Of one training and its questions."""

    seconds: float = 12.0
    questions: int = 64  # of a load and a distance, at least
    streams: int = 16  # that they are asked of, at least
    reading: float = 15.0  # processor seconds after which no farther distance is asked
    distances: tuple[int, ...] = DISTANCES


# of heads of 16 the cubic features alone would pass the weights that others have in all
_SMALL = {"dot": DotConfig, "deep_transformers": DeepTransformersConfig}
_TOGETHER = ("sliding_window", "gated_deltanet")


def contenders() -> list[str]:
    """The name of every row: all presets, and a stack of two memories a block."""
    return [*systems_with_presets(), " + ".join(_TOGETHER)]


def config_of(name: str) -> Any:
    """The config of a row, of `WEIGHTS` weights as near as it can be."""
    if name not in contenders():
        raise ConfigError(f"there is no row {name!r}; {nearest(name, contenders())}")
    if name in systems_with_presets() and name not in _SMALL:
        return _sized(preset(name, "tiny", vocab_size=V, **SHAPE))
    if name in _SMALL:
        layer = _SMALL[name](d_model=SHAPE["d_model"], n_heads=8)
    else:
        layer = tuple(preset(one, "tiny", vocab_size=V, **SHAPE).layers[0] for one in _TOGETHER)
    return _sized(StackConfig(vocab_size=V, d_model=SHAPE["d_model"], layers=SHAPE["n_layers"] * (layer,)))


def _sized(config: Any) -> Any:
    """`config` with the feedforward, or what it has in its place, that makes the weights equal."""
    if hasattr(config, "ff_mult") or hasattr(config, "backbone"):
        return as_wide(config, WEIGHTS)
    if hasattr(config, "n_notes"):  # two layers of Mamba-2, whose notes are as large as two layers more
        config = replace(config, n_layers=SHAPE["n_layers"], below_every=SHAPE["n_layers"])
    sizes = range(8, 512)
    above = sizes[bisect.bisect_left(sizes, WEIGHTS, key=lambda n: weights_of(_wider(config, n)))]
    return min((_wider(config, above - 1), _wider(config, above)), key=lambda made: abs(weights_of(made) - WEIGHTS))


def _wider(config: Any, n: int) -> Any:
    """What has no feedforward of its own by another name: the channel mixing of RWKV, the matrices of Mamba-2, the width of an LSTM."""
    if hasattr(config, "hidden_size"):
        return replace(config, hidden_size=n)
    if hasattr(config, "layer"):
        return replace(config, layer=replace(config.layer, state_size=n))
    return replace(config, d_model=n)


class Facts(NamedTuple):
    """Lists of n facts, one a stream; keys and values are numbers, not tokens."""

    keys: Int64[Tensor, "B n"]
    values: Int64[Tensor, "B n"]

    @classmethod
    def draw(cls, streams: int, n: int, generator: torch.Generator) -> "Facts":
        return cls(choose_distinct(streams, n, N_KEYS, generator), torch.randint(N_VALUES, (streams, n), generator=generator))

    @property
    def tokens(self) -> Int64[Tensor, "B n"]:
        return self.keys * N_VALUES + self.values

    def some(self, n: int, generator: torch.Generator) -> "Facts":
        """n of each stream, in an order of their own."""
        streams, held = self.keys.shape
        places = choose_distinct(streams, min(n, held), held, generator)
        return Facts(self.keys.gather(1, places), self.values.gather(1, places))


def noise(rows: int, length: int, generator: torch.Generator) -> Int64[Tensor, "rows length"]:
    return torch.randint(V - N_NOISE, V, (rows, length), generator=generator)


def lesson(share: float, generator: torch.Generator) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """(tokens, targets) when `share` of the time is spent; only answers are scored."""
    most, farthest = next((facts, between) for until, facts, between in STAGES if share <= until)
    n, d, before = (int(torch.randint(low, high + 1, (1,), generator=generator)) for low, high in ((1, most), (0, farthest), (0, BEFORE)))
    facts = Facts.draw(BATCH, n, generator)
    asked = facts.some(n, generator)
    tokens = torch.cat([noise(BATCH, before, generator), facts.tokens, noise(BATCH, d, generator), ALPHABET.keys[asked.keys]], dim=1)
    targets = torch.full_like(tokens, -100)
    targets[:, -n:] = ALPHABET.values[asked.values]
    return tokens, targets


def run(name: str, *, lr: float, seed: int = 0, budget: Budget = Budget()) -> dict[str, Any]:
    """Train, choose and ask; seconds are of this process's processor time."""
    torch.manual_seed(seed)
    model, generator, read = config_of(name).build(), torch.Generator().manual_seed(seed), 0

    def loss(share: float) -> Tensor:
        nonlocal read
        tokens, targets = lesson(share, generator)
        read += tokens.numel()
        total, count, _ = model.loss(tokens, targets, model.init_state(len(tokens)))
        return total / count

    steps, seconds = fit_within(model, loss, seconds=budget.seconds, lr=lr)
    trained = tuple(d for d in budget.distances if d <= STAGES[-1][2])
    known = [
        cell for cells in recall(model, LOADS[:-1], trained, seed=SEEDS["chosen"], budget=budget) for cell in cells if cell is not None
    ]
    return {
        "name": name,
        "seed": seed,
        "lr": lr,
        "steps": steps,
        "tokens": read,
        "cpu_seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
        "chosen_by": round(sum(known) / max(1, len(known)), 4),
        "training_tokens_per_second": round(read / seconds),
        **held(model),
        "recall": recall(model, LOADS, budget.distances, seed=SEEDS["asked"], budget=budget),
    }


@torch.no_grad()
def recall(model: Any, loads: Sequence[int], distances: Sequence[int], *, seed: int, budget: Budget) -> list[list[float | None]]:
    """Share of right answers, [load][distance]. All loads are read at once: more noise comes before fewer facts.

    None where the seconds for reading ended before.
    """
    began = time.process_time()
    generator, most = torch.Generator().manual_seed(seed), max(loads)
    drawn = [Facts.draw(max(budget.streams, budget.questions // n), n, generator) for n in loads]
    asked = [facts.some(8, generator) for facts in drawn]
    shown = torch.cat([torch.cat([noise(len(f.keys), most - f.keys.shape[1], generator), f.tokens], dim=1) for f in drawn])
    borders = [0, *itertools.accumulate(len(f.keys) for f in drawn)]
    state, place = read_on(model, shown, model.init_state(len(shown))), 0
    found: list[list[float | None]] = [[] for _ in loads]
    for distance in distances:
        if time.process_time() - began > budget.reading:
            for cells in found:
                cells.append(None)
            continue
        state, place = read_on(model, noise(len(shown), distance - place, generator), state), distance
        for cells, facts, (first, end) in zip(found, asked, itertools.pairwise(borders), strict=True):
            answers = ask(model, select(state, slice(first, end)), ALPHABET.keys[facts.keys], facts.values, ALPHABET)
            cells.append(round(answers.accuracy, 4))
    return found


@torch.no_grad()
def held(model: Any, *, read: int = 512, timed: int = 64) -> dict[str, Any]:
    """Bytes of one stream at a border after 512 tokens, and the tokens a second at which it then reads one by one."""
    generator = torch.Generator().manual_seed(0)
    state = read_on(model, noise(1, read, generator), model.init_state(1))
    size, tokens, spent = state_bytes(state), noise(timed, 1, generator), []
    for token in tokens:
        began = time.process_time()
        _, state = model.step(token, state)
        spent.append(time.process_time() - began)
    return {"state_bytes": size, "decoding_tokens_per_second": round(1 / sorted(spent)[timed // 2])}


def chosen(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each system the row that answered more of the questions that are asked of nobody's test."""
    return {row["name"]: row for row in sorted(rows, key=lambda row: row["chosen_by"])}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Recall by distance and load of all systems that read a stream, at equal weights and time."
    )
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (default 0)")
    parser.add_argument("--seconds", type=float, default=Budget.seconds, help=f"of training at each rate (default {Budget.seconds:g})")
    parser.add_argument("--rate", type=float, action="append", help=f"default {' and '.join(map(str, RATES))}")
    parser.add_argument("--only", default="", help="these rows alone, with commas between")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    facts: dict[str, Any] = {"chance": 1 / N_VALUES, "loads": LOADS, "distances": DISTANCES, "trained": STAGES[-1][1:], "weights": WEIGHTS}
    table = Table("python -m memseq.recipes.recall_table", given.json, **facts)
    done = {(row["name"], row["part"], row["seed"]) for row in table.rows}
    for rate in given.rate or RATES:
        for name in given.only.split(",") if given.only else contenders():
            part = f"rate {rate:g}"
            if (name, part, given.seed) not in done:
                table.add(part=part, **run(name, lr=rate, seed=given.seed, budget=Budget(seconds=given.seconds)))


if __name__ == "__main__":
    main()

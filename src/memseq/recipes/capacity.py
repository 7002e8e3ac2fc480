"""What a state of a size can hold: pairs of keys and values that are all recalled, and a pass key in miniature.

Source: the capacity law of Stuffed Mamba (Chen et al., arXiv:2410.07145): the longest stream that is recalled grows with the state.

    python -m memseq.recipes.capacity --part pairs --json results.json
    python -m memseq.recipes.capacity --part passkey --json results.json

    pairs      `tasks/mqar.py`: n of 79 keys, each with one of 80 values, then all keys in any order; the largest n of which 95 % are
               right, by state size N. Every pair must be written, because none looks different from those that are asked for.
    passkey    four symbols of sixteen, then noise of other symbols (`tasks/recall.py`): the longest stream after which 95 % are right.
               Noise that looks like noise need not be written, so that here a size limits what is kept no more than the gates do.

One block of width 64 around one memory in `pairs`, so that one matrix N x 128 is all that is carried: a second layer would be a second
matrix. 400 steps of 1,024 tokens at a rate of 0.02, of 1 pair at first and of up to 64 soon; asked are 1,024 questions of each n. Rows:

    mamba2, slow gates     keys are C and B of width N; all rates times e^-6 before training, so that nothing is forgotten at first
    mamba2, usual gates    as it is begun usually: half of a head is forgotten after one token to some hundreds
    deltanet               one head, keys of width N, which takes away what a key retrieves before it writes

Seconds are of processor time.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.mamba2 import Mamba2Config
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import state_bytes
from memseq.tasks.mqar import MQARTask
from memseq.tasks.recall import RecallTask

__all__ = [
    "KINDS",
    "LENGTHS",
    "PairsRun",
    "PasskeyRun",
    "answers",
    "ask_pairs",
    "held",
    "law",
    "laws",
    "longest",
    "main",
    "pairs",
    "pairs_runs",
    "passkey",
    "passkey_runs",
    "run_pairs",
    "run_passkey",
    "slowed",
    "teach",
    "teach_pairs",
]

D, WIDTH, HEAD, SLOW = 64, 128, 32, 6.0
STATES = (4, 8, 16, 32)
VOCABULARY = 160
TAUGHT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # pairs
ASKED = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
LENGTHS = tuple(2**n for n in range(1, 9))  # segments of 12 tokens
KINDS = ("mamba2, slow gates", "mamba2, usual gates", "deltanet")


@dataclass(frozen=True, kw_only=True)
class PairsRun:
    """One training on pairs."""

    kind: str  # of `KINDS`
    state_size: int  # N
    steps: int = 400
    lr: float = 2e-2
    tokens: int = 1024  # a step
    questions: int = 1024  # of each number of pairs

    @property
    def name(self) -> str:
        return f"{self.kind}, N={self.state_size}"


@dataclass(frozen=True, kw_only=True)
class PasskeyRun:
    """One training on the pass key in miniature, on streams of 24 to 96 tokens."""

    state_size: int
    steps: int = 400
    lr: float = 1e-2
    batch_size: int = 16
    asked: int = 64

    @property
    def name(self) -> str:
        return f"N={self.state_size}"


def pairs_runs() -> list[PairsRun]:
    return [PairsRun(kind=kind, state_size=n) for kind in KINDS for n in STATES]


def passkey_runs() -> list[PasskeyRun]:
    return [PasskeyRun(state_size=n) for n in (4, 8, 16, 32, 64)]


def slowed(model: Any, slow: float) -> Any:
    """The model, its Mamba-2 layers forgetting e^slow times more slowly before any training."""
    with torch.no_grad():
        for block in model.blocks:
            block.memories[0].gate.A_log.sub_(slow)
    return model


def pairs(n: int) -> MQARTask:
    """Questions anywhere in as many places as the pairs took."""
    return MQARTask(vocabulary=VOCABULARY, n_tokens=4 * n, n_pairs=n, power=1.0)


def model_of(what: PairsRun) -> Any:
    """One block around one matrix N x 128."""
    if what.kind == "deltanet":
        memory: Any = DeltaNetConfig(d_model=D, n_heads=1, key_size=what.state_size, value_size=WIDTH)
    else:
        memory = Mamba2Config(d_model=D, expand=WIDTH // D, head_size=HEAD, state_size=what.state_size)
    model = StackConfig(vocab_size=VOCABULARY, d_model=D, layers=(memory,), ff_mult=2.0).build()
    return slowed(model, SLOW) if what.kind == "mamba2, slow gates" else model


def run_pairs(what: PairsRun, seed: int) -> dict[str, Any]:
    """Train, and ask for each number of pairs."""
    torch.manual_seed(seed)
    model = model_of(what)
    seconds = teach_pairs(model, steps=what.steps, lr=what.lr, tokens=what.tokens, seed=seed)
    accuracy = {str(n): ask_pairs(model, n, questions=what.questions) for n in ASKED}
    found = held(accuracy)
    facts = {"part": "pairs", "name": what.name, "kind": what.kind, "seed": seed, "state_size": what.state_size}
    size = {"cpu_seconds": round(seconds, 1), "parameters": weights(model), "state_bytes": state_bytes(model.init_state(1))}
    bits = found * math.log2(VOCABULARY // 2)
    per = {"bits": round(bits, 1), "bits_per_number": round(bits / (what.state_size * WIDTH), 4)}
    return {**facts, **size, "held": round(found, 2), **per, "accuracy": accuracy}


def teach_pairs(model: Any, *, steps: int, lr: float, tokens: int, seed: int, before: Callable[[float], None] = lambda _: None) -> float:
    """Train on ever more pairs, all numbers of `TAUGHT` from three quarters on; processor seconds.

    `before` is called before every step with the share of steps that are done.
    """

    def loss(step: int) -> Tensor:
        before((step - 1) / steps)
        kinds = 1 + (len(TAUGHT) - 1) * min(1.0, 0.15 + 1.2 * step / steps)
        g = torch.Generator().manual_seed(step + 10**6 * seed)
        task = pairs(TAUGHT[min(len(TAUGHT) - 1, int(torch.rand((), generator=g) * kinds))])
        batch = task.sample(max(4, min(64, tokens // task.length)), seed=step + 10**6 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(len(batch.inputs)))
        return total / count

    return fit(model, loss, steps=steps, lr=lr)


@torch.no_grad()
def ask_pairs(model: Any, n: int, *, questions: int) -> float:
    batch = pairs(n).sample(max(1, questions // n), seed=n, split="test")
    logits, _ = model(batch.inputs, model.init_state(len(batch.inputs)))
    return round(pairs(n).metric(logits, batch)["accuracy"], 4)


def held(accuracy: dict[str, float], at_least: float = 0.95) -> float:
    """Pairs up to which 95 % are right: between two that were asked, in proportion; 0 where one pair is too much."""
    before, right_before = 0.0, 1.0
    for n, right in sorted((int(n), a) for n, a in accuracy.items()):
        if right < at_least:
            return before + (n - before) * (right_before - at_least) / (right_before - right) if before else 0.0
        before, right_before = float(n), right
    return before


def passkey(n_segments: int) -> RecallTask:
    """Four of sixteen symbols, then noise of sixteen others."""
    return RecallTask(n_segments=n_segments, segment_length=12, n_shown=4)


def teach(model: Any, *, steps: int, lr: float, batch_size: int, seed: int, stages: Sequence[int] = (2, 4, 8)) -> float:
    """Train on the pass key in miniature over so many segments, the first number alone at first, then more; processor seconds."""

    def loss(step: int) -> Tensor:
        most = 1 + min(len(stages) - 1, len(stages) * (step - 1) // steps)
        n_segments = stages[int(torch.randint(most, (), generator=torch.Generator().manual_seed(step)))]
        batch = passkey(n_segments).sample(batch_size, seed=step + 10**6 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(batch_size))
        return total / count

    return fit(model, loss, steps=steps, lr=lr)


@torch.no_grad()
def answers(model: Any, lengths: Sequence[int], *, asked: int) -> dict[str, float]:
    """Accuracy by segments of the stream, the questions in the last; up to the first length of which less than half is known."""
    found = {}
    for n_segments in lengths:
        batch, state = passkey(n_segments).sample(asked, seed=n_segments, split="test"), model.init_state(asked)
        *before, last = batch.segments(12 * min(n_segments, 32))
        for piece in before:
            state = model.advance(piece.tokens, state)
        right = (model(last.tokens, state)[0].argmax(-1) == last.targets).sum() / (last.targets != -100).sum()
        found[str(n_segments)] = round(float(right), 4)
        if right < 0.5:
            break
    return found


def longest(accuracy: dict[str, float], at_least: float = 0.95) -> int:
    """Tokens of the longest stream up to which every length that was asked is answered; 0 for none."""
    reached = 0
    for n_segments, right in sorted((int(n), a) for n, a in accuracy.items()):
        if right < at_least:
            break
        reached = 12 * n_segments
    return reached


def run_passkey(what: PasskeyRun, seed: int) -> dict[str, Any]:
    """Train and ask."""
    torch.manual_seed(seed)
    memory = Mamba2Config(d_model=D, head_size=HEAD, state_size=what.state_size)
    model = StackConfig(vocab_size=passkey(2).vocab_size, d_model=D, layers=2 * (memory,), ff_mult=2.0).build()
    seconds = teach(model, steps=what.steps, lr=what.lr, batch_size=what.batch_size, seed=seed)
    accuracy = answers(model, LENGTHS, asked=what.asked)
    facts = {"part": "passkey", "name": what.name, "seed": seed, "state_size": what.state_size}
    size = {"cpu_seconds": round(seconds, 1), "parameters": weights(model), "state_bytes": state_bytes(model.init_state(1))}
    return {**facts, **size, "longest": longest(accuracy), "accuracy": accuracy}


def law(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Least squares of log2(what is held) on N and on log2 N, over all (N, held) that hold anything: 2^(a + b N), and 2^a N^b."""
    points = [(n, what) for n, what in points if what]
    if len({n for n, _ in points}) < 2:
        return {}
    y = torch.tensor([math.log2(what) for _, what in points], dtype=torch.float64)
    fits = {}
    for name, of in (("exponential", float), ("power", math.log2)):
        x = torch.tensor([[1.0, of(n)] for n, _ in points], dtype=torch.float64)
        found = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
        error = float((y - x @ found).square().mean().sqrt())
        fits[name] = {"a": round(float(found[0]), 3), "b": round(float(found[1]), 3), "rms_in_doublings": round(error, 3)}
    return fits


def laws(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The law of pairs for each kind, and that of the longest pass key."""
    found = {kind: law([(row["state_size"], row["held"]) for row in rows if row.get("kind") == kind]) for kind in KINDS}
    found["passkey"] = law([(row["state_size"], row["longest"]) for row in rows if row["part"] == "passkey"])
    return {name: fits for name, fits in found.items() if fits}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a state of a size can hold.")
    parser.add_argument("--part", choices=("pairs", "passkey"), required=True)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.capacity", given.json)
    runs: dict[str, tuple[Any, Any]] = {"pairs": (pairs_runs, run_pairs), "passkey": (passkey_runs, run_passkey)}
    contenders, run = runs[given.part]
    done = {(row["part"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders():
            if (given.part, what.name, seed) not in done:
                row = run(what, seed)
                table.facts["laws"] = laws([*table.rows, row])
                table.add(**row)


if __name__ == "__main__":
    main()

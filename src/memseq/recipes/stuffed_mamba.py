"""State collapse: a large state that was trained on short streams never learned to forget, and what repairs it.

Source: Stuffed Mamba (Chen et al., arXiv:2410.07145).

    python -m memseq.recipes.stuffed_mamba --part forget --json results.json

    forget     Mamba-2 trained on streams of 64 tokens and read on to 4,096: loss by position, the norm of each head's state, and what
               each head retains of the first token at the trained length; the three repairs without training around the same
               weights; and training that is a repair, on longer streams or with the state carried from step to step
    sizes      the same for other state sizes N and trained lengths: which length teaches which size to forget

What a state of a size can hold is asked by `recipes/capacity.py`.

Streams of `forget` are `tasks/horizon.py`: trained with questions up to 64 tokens back, asked up to 32 back, so that questions at places 33
to 64 and at place 4,000 are alike. Two blocks of width 64, heads of 32: 100 steps of 16 streams of 16 tokens, 100 of 32 tokens, then 200
of 1,024 tokens a step whatever the length. Mamba-2's usual initial gates forget within tens to a thousand tokens, and in so short
a training they stay so; "slow gates" multiply all rates by e^-6 before training, so that at first nothing is forgotten within any
of these lengths and what forgetting there is was learned. Both are rows. Seconds are of processor time.
"""

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.stuffed_mamba import Limited, Scaled, StuffedMambaConfig, Windowed
from memseq.models.stack import StackConfig
from memseq.recipes.capacity import slowed
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import detach, state_bytes
from memseq.tasks.horizon import HorizonRecallTask
from memseq.tasks.task import IGNORE

__all__ = [
    "ForgetRun",
    "forget",
    "forget_runs",
    "main",
    "repaired",
    "size_runs",
    "train",
]

D, HEAD, SLOW = 64, 32, 6.0
WITHIN = 64  # questions at places 33 to 64 are as far back as those beyond, and within every trained length
TOKENS = 1024  # a step
REPAIRS: dict[str, Any] = {
    "retain 0.99": Scaled(retain=0.99),
    "retain 0.97": Scaled(retain=0.97),
    "retain 0.97, insert 0.7": Scaled(retain=0.97, insert=0.7),
    "retain 0.95": Scaled(retain=0.95),
    "limit 0.5, every 16": (Limited(largest=1.0, every=16), 0.5),
    "limit 1, every 16": (Limited(largest=1.0, every=16), 1.0),
    "window 32 to 64": Windowed(window=32),
    "window 64 to 128": Windowed(window=64),
}


@dataclass(frozen=True, kw_only=True)
class ForgetRun:
    """One training on streams with a horizon."""

    state_size: int = 64
    length: int = 64
    slow: float = SLOW
    carried: bool = False  # whether a step's streams go on where those of the step before ended
    mend: bool = False  # whether the repairs are tried on it
    steps: tuple[int, int, int] = (100, 100, 200)  # at 16 tokens, at 32, at `length`
    lr: float = 1.5e-2
    read: int = 4096  # tokens of the test; the last half is what is called beyond
    streams: int = 8  # that are read in the test

    @property
    def name(self) -> str:
        gates = "slow gates" if self.slow else "usual gates"
        return f"N={self.state_size}, {self.length} tokens, {gates}{', state carried' if self.carried else ''}"


def forget_runs() -> list[ForgetRun]:
    """What collapses; what trains it not to; a smaller state; the usual gates."""
    return [
        ForgetRun(mend=True),
        ForgetRun(length=512),
        ForgetRun(carried=True),
        ForgetRun(state_size=16),
        ForgetRun(slow=0.0),
    ]


def size_runs() -> list[ForgetRun]:
    """The other sizes and lengths."""
    there = {what.name for what in forget_runs()}
    runs = [ForgetRun(state_size=n, length=length) for n in (16, 32, 64) for length in (64, 128, 256, 512)]
    return [what for what in runs if what.name not in there]


def stream(n_tokens: int, horizon: int) -> HorizonRecallTask:
    return HorizonRecallTask(n_tokens=n_tokens, horizon=horizon, n_keys=128, n_values=16)


def config_of(state_size: int, vocab_size: int) -> StackConfig:
    memory = Mamba2Config(d_model=D, head_size=HEAD, state_size=state_size)
    return StackConfig(vocab_size=vocab_size, d_model=D, layers=2 * (memory,), ff_mult=2.0)


def train(what: ForgetRun, seed: int) -> tuple[Any, float]:
    """(the model, processor seconds)."""
    torch.manual_seed(seed)
    model: Any = slowed(config_of(what.state_size, stream(4, 2).vocab_size).build(), what.slow)
    first, second, last = what.steps
    lengths = [16] * first + [32] * second + [what.length] * last
    B = TOKENS // what.length
    going_on = stream(max(4, what.length * last), 64).sample(B, seed=10**6 * seed) if what.carried else None
    state: Any = model.init_state(B)

    def loss(step: int) -> Tensor:
        nonlocal state
        L, before = lengths[step - 1], step - 1 - first - second
        if going_on is None or before < 0:
            batch = stream(L, min(64, L)).sample(min(16, TOKENS // L), seed=step + 10**6 * seed)
            total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(len(batch.inputs)))
            return total / count
        here = slice(before * L, (before + 1) * L)
        total, count, state = model.loss(going_on.inputs[:, here], going_on.labels[:, here], detach(state))
        return total / count

    return model, fit(model, loss, steps=len(lengths), lr=what.lr)


@torch.no_grad()
def read_on(model: Any, *, tokens: int, streams: int) -> dict[str, Any]:
    """Loss in nats and accuracy of questions up to 32 tokens back, to places 32, 64, 128 ...; norms of states there, a head each.

    `beyond` is that of the last half; `within` that of places 33 to 64, of as many questions, in short streams of their own.
    """
    short = stream(WITHIN, 32).sample(streams * tokens // WITHIN, seed=2, split="test")
    logits, _ = model(short.inputs, model.init_state(len(short.inputs)))
    loss_within, right_within = _scored(logits[:, 32:], short.labels[:, 32:])
    batch = stream(tokens, 32).sample(streams, seed=1, split="test")
    state, rows, start, end = model.init_state(streams), [], 0, 32
    while end <= tokens:
        said, targets = [], batch.labels[:, start:end]
        for piece in batch.inputs[:, start:end].split(512, dim=1):
            logits, state = model(piece, state)
            said.append(logits)
        loss, right = _scored(torch.cat(said, dim=1), targets)
        norms = [[round(float(n), 3) for n in t] for t in _norms(state)]
        rows.append({"to": end, "loss": loss, "accuracy": right, "norms": norms})
        start, end = end, 2 * end
    within, beyond = next(row for row in rows if row["to"] == WITHIN), rows[-1]
    return {
        "within": loss_within,
        "beyond": beyond["loss"],
        "rise": round(beyond["loss"] - loss_within, 4),
        "accuracy_within": right_within,
        "accuracy_beyond": beyond["accuracy"],
        "growth": round(
            max(b / a for one, two in zip(within["norms"], beyond["norms"], strict=True) for a, b in zip(one, two, strict=True)), 2
        ),
        "by_place": rows,
    }


def _scored(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """(loss, accuracy) of what is asked."""
    asked = labels != IGNORE
    logits, labels = logits[asked], labels[asked]
    return round(float(cross_entropy(logits, labels)), 4), round(float((logits.argmax(-1) == labels).double().mean()), 4)


def _norms(state: Any) -> list[Tensor]:
    """Of every layer: the Frobenius norm of each head's matrix, the mean over streams."""
    matrices = [getattr(layer[0], "h", None) for layer in state.layers]
    found = [layer[0].states[0].h if h is None else h for layer, h in zip(state.layers, matrices, strict=True)]
    return [h.flatten(2).norm(dim=2).mean(0) for h in found]


@torch.no_grad()
def retention(model: Any, length: int) -> list[list[float]]:
    """What each head of each layer retains of the first token after `length` tokens: exp of the sum of its logarithmic gates."""
    batch, kept = stream(length, min(64, length)).sample(8, seed=2, split="test"), []

    def listen(_: Any, __: Any, gates: tuple[Tensor, Tensor]) -> None:
        kept.append([round(float(r), 3) for r in gates[1].sum(1).exp().mean(0)])

    with ExitStack() as hooks:
        for block in model.blocks:
            hooks.callback(block.memories[0].gate.register_forward_hook(listen).remove)
        model(batch.inputs, model.init_state(8))
    return kept


def forget(what: ForgetRun, seed: int) -> list[dict[str, Any]]:
    """Train, and read on; with every repair too where `what` says so."""
    model, seconds = train(what, seed)
    facts = {"name": what.name, "seed": seed, "state_size": what.state_size, "length": what.length}
    size = {"cpu_seconds": round(seconds, 1), "parameters": weights(model), "state_bytes": state_bytes(model.init_state(1))}
    far: dict[str, Any] = {"tokens": what.read, "streams": what.streams}
    rows = [{"part": "forget", **facts, **size, "retention": retention(model, what.length), **read_on(model, **far)}]
    for name, repair in REPAIRS.items() if what.mend else ():
        found = read_on(repaired(model, repair, what.length), **far)
        rows.append({"part": "repairs", "name": name, "seed": seed, "of": what.name, **found})
    return rows


def repaired(model: Any, repair: Any, length: int) -> Any:
    """A model of the same weights whose memories are repaired; the limit of heads is a share of their norm in reading `length` tokens."""
    repair, share = repair if isinstance(repair, tuple) else (repair, None)
    layers = tuple(StuffedMambaConfig(memory=memory, repair=repair) for memory in model.config.layers)
    other = replace(model.config, layers=layers).build().eval()
    own = {name.replace(".memories.0.", ".memories.0.memory."): w for name, w in model.state_dict().items()}
    other.load_state_dict(own, strict=share is None)
    if share is not None:
        inputs: list[Tensor] = []
        with ExitStack() as hooks, torch.no_grad():
            for block in model.blocks:
                hooks.callback(block.norms[0].register_forward_hook(lambda _, __, x: inputs.append(x)).remove)
            model(stream(length, min(64, length)).sample(16, seed=3).inputs, model.init_state(16))
        for block, x in zip(other.blocks, inputs, strict=True):
            block.memories[0].calibrate(x, share)
    return other


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="State collapse, and its repairs.")
    parser.add_argument("--part", choices=("forget", "sizes"), required=True)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.stuffed_mamba", given.json)
    done = {(row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in forget_runs() if given.part == "forget" else size_runs():
            if (what.name, seed) not in done:
                for row in forget(what, seed):
                    table.add(**row)


if __name__ == "__main__":
    main()

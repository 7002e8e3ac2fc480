"""MemMamba's notes: do they keep what the state of a Mamba-2 of equal weights loses over a distance, and which of them do?

Source: MemMamba (Wang et al., arXiv:2510.03279), whose baselines have fewer weights than it has.

    python -m memseq.recipes.memmamba --json results.json

The task is the pass key in miniature of `recipes/capacity.py`: four symbols of sixteen, noise of sixteen others, questions at the end;
trained on 24 to 96 tokens, asked up to 3,072. Two layers of width 64, four heads of 32, batch 16, the same batches. Rows:

    memmamba             8 notes of 16 numbers a layer, N = 8; the second layer also reads the first one's pool
    no own notes         without attention of a layer to its own pool (cross-token)
    no notes of below    without attention to the pool of the layer below (cross-layer)
    choice not learned   what is worth a note was drawn once
    mamba2, weights      neither: Mamba-2 of as many weights, which are a larger state (N = 42)
    mamba2, bytes        neither: Mamba-2 of as many bytes of state or more, which are fewer weights (N = 10)
    long, ...            the first and these two, 8 streams a step of 24 to 768 tokens, over which the state alone loses symbols at first;
                         "seldom" begins with few notes (the bias of what is worth one is -2), "32 notes" has a larger pool

All rows but those of bytes and of 32 notes have the weights of the first, to one part in a hundred, by the state size N. Measured are
accuracy by length; the two fidelities of the source by `probes/fidelity.py`: of a token over time (ETMF), here at the questions, the cosine
between the embedding of the symbol asked for and what is predicted, with that of another stream's symbol as the floor, and of a layer in
those above it (ECLMF_r), in reading 8 streams of 96 tokens; and of which symbols and which noise notes are taken. Seconds are of
processor time.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from memseq.memories.mamba2 import Mamba2Config
from memseq.models.mamba2 import Mamba2LMConfig
from memseq.models.memmamba import MemMamba, MemMambaConfig
from memseq.probes.fidelity import cross_layer, listened
from memseq.recipes.capacity import LENGTHS, answers, longest, passkey, teach
from memseq.recipes.fitting import Table, weights, weights_of
from memseq.state import state_bytes
from memseq.tasks.task import IGNORE

__all__ = ["NotesRun", "as_heavy", "contenders", "fidelity", "main", "run", "written"]

D, HEAD, LAYERS, STATE = 64, 32, 2, 8
LONG: dict[str, Any] = {"stages": (2, 8, 32, 64), "batch_size": 8}


@dataclass(frozen=True, kw_only=True)
class NotesRun:
    """One training."""

    name: str
    model: Any
    stages: tuple[int, ...] = (2, 4, 8)  # segments of 12 tokens
    worth: float | None = None  # the bias of what is worth a note, before training; None: as it is drawn
    steps: int = 500
    lr: float = 1e-2
    batch_size: int = 16
    asked: int = 64


def layer(state_size: int) -> Mamba2Config:
    return Mamba2Config(d_model=D, head_size=HEAD, state_size=state_size)


def plain(state_size: int) -> Mamba2LMConfig:
    return Mamba2LMConfig(vocab_size=passkey(2).vocab_size, layer=layer(state_size), n_layers=LAYERS)


def noting(**options: Any) -> MemMambaConfig:
    shape: dict[str, Any] = {"n_notes": 8, "note_size": 16, "window": 1, "below_every": LAYERS, "below": LAYERS - 1}
    return MemMambaConfig(vocab_size=passkey(2).vocab_size, layer=layer(STATE), n_layers=LAYERS, **shape | options)


def as_heavy(config: Any, n_weights: int) -> Any:
    """`config` with the state size that gives it about `n_weights` weights."""
    one, two = (weights_of(replace(config, layer=layer(n))) for n in (1, 2))
    return replace(config, layer=layer(max(1, round(1 + (n_weights - one) / (two - one)))))


def contenders() -> list[NotesRun]:
    """Every row of the table."""
    whole = noting()
    n, held = weights_of(whole), state_bytes(whole.build().init_state(1))
    each = state_bytes(plain(2).build().init_state(1)) - state_bytes(plain(1).build().init_state(1))
    equal = -(-(held - state_bytes(plain(1).build().init_state(1))) // each) + 1  # as many bytes or more
    return [
        NotesRun(name="memmamba", model=whole),
        NotesRun(name="mamba2, weights", model=as_heavy(plain(STATE), n)),
        NotesRun(name="mamba2, bytes", model=plain(equal)),
        NotesRun(name="no own notes", model=as_heavy(noting(own=False), n)),
        NotesRun(name="no notes of below", model=as_heavy(noting(below_every=None), n)),
        NotesRun(name="choice not learned", model=as_heavy(noting(select="frozen"), n)),
        NotesRun(name="long, memmamba", model=whole, **LONG),
        NotesRun(name="long, mamba2, weights", model=as_heavy(plain(STATE), n), **LONG),
        NotesRun(name="long, mamba2, bytes", model=plain(equal), **LONG),
        NotesRun(name="long, memmamba, seldom", model=whole, worth=-2.0, **LONG),
        NotesRun(name="long, memmamba, seldom, 32 notes", model=noting(n_notes=32), worth=-2.0, **LONG),
    ]


def run(what: NotesRun, *, seed: int = 0) -> dict[str, Any]:
    """Train, ask, and measure what is kept."""
    torch.manual_seed(seed)
    model = what.model.build()
    if what.worth is not None:
        for writer in model.writers:
            torch.nn.init.constant_(writer.worth.bias, what.worth)
    seconds = teach(model, steps=what.steps, lr=what.lr, batch_size=what.batch_size, seed=seed, stages=what.stages)
    accuracy = answers(model, LENGTHS, asked=what.asked)
    return {
        "name": what.name,
        "seed": seed,
        "state_size": what.model.layer.state_size,
        "cpu_seconds": round(seconds, 1),
        "parameters": weights(model),
        "state_bytes": state_bytes(model.init_state(1)),
        "longest": longest(accuracy),
        "accuracy": accuracy,
        **fidelity(model, streams=what.asked),
        **({"written": written(model)} if isinstance(model, MemMamba) else {}),
    }


@torch.no_grad()
def written(model: MemMamba, streams: int = 16) -> list[dict[str, float]]:
    """Of every layer: the share of symbols to keep, and of noise, of which it takes a note."""
    task = passkey(8)
    batch, found = task.sample(streams, seed=9, split="test"), []
    shown = torch.zeros_like(batch.inputs, dtype=torch.bool)
    shown[:, 1 : 1 + task.n_shown] = True
    noise = (batch.inputs >= task.n_symbols) & (batch.inputs < task.show)

    def listen(_: Any, __: Any, told: tuple[Any, Any]) -> None:
        chosen = told[0].written[:, -batch.inputs.shape[1] :]
        found.append({"symbols": round(float(chosen[shown].double().mean()), 3), "noise": round(float(chosen[noise].double().mean()), 3)})

    whole = replace(model.config, chunk_size=batch.inputs.shape[1]).build().eval()  # one chunk, so that a layer chooses once
    whole.load_state_dict(model.state_dict())
    for writer in whole.writers:
        writer.register_forward_hook(listen)
    whole(batch.inputs, whole.init_state(streams))
    return found


@torch.no_grad()
def fidelity(model: Any, *, streams: int) -> dict[str, Any]:
    """ETMF at the questions of streams of 24 to 1,536 tokens, with its floor; ECLMF_r of residual streams one and two layers apart."""
    table, tokens = model.embedding.weight, []
    for n_segments in (2, 8, 32, 128):
        batch, state = passkey(n_segments).sample(streams, seed=n_segments, split="test"), model.init_state(streams)
        *before, last = batch.segments(12 * min(n_segments, 32))
        for piece in before:
            state = model.advance(piece.tokens, state)
        logits, _ = model(last.tokens, state)
        asked = last.targets[0] != IGNORE  # the same places in every stream
        told, right = logits[:, asked].softmax(-1) @ table, table[last.targets[:, asked]]
        kept, floor = (float(cosine_similarity(told, other, dim=-1).mean()) for other in (right, right.roll(1, dims=0)))
        tokens.append({"tokens": 12 * n_segments, "etmf": round(kept, 4), "floor": round(floor, 4)})
    inputs = passkey(8).sample(8, seed=9, split="test").inputs
    heard, _, _ = listened(model, [*model.norms, model.norm], inputs, model.init_state(8))
    streams_of = [h.float().flatten(0, 1) for h in heard]
    apart = {}
    for gap in range(1, len(streams_of)):
        pairs = [cross_layer(streams_of[i], streams_of[i + gap])[1] for i in range(len(streams_of) - gap)]
        apart[str(gap)] = round(sum(pairs) / len(pairs), 4)
    return {"etmf": tokens, "eclmf_r": apart}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What notes keep that a state of equal weights loses.")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the result to this file, after every row; rows that it holds are not trained again")
    given = parser.parse_args(arguments)
    table = Table("python -m memseq.recipes.memmamba", given.json, chance=1 / 16)
    for seed in range(given.seeds):
        for what in contenders():
            if given.only in what.name and not any(row["name"] == what.name and row["seed"] == seed for row in table.rows):
                table.add(**run(what, seed=seed))


if __name__ == "__main__":
    main()

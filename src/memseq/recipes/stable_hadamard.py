"""Stable Hadamard memory, asked as its paper asks it: cards long gone, decks said backwards, and what keeps a matrix stable.

Source: Stable Hadamard Memory (Le et al., arXiv:2410.10132). The paper trains agents by reinforcement; here the games of POPGym are
sequence labelling (`tasks/popgym.py`), so that what is compared is what the memory can hold, not how an agent explores.

    python -m memseq.recipes.stable_hadamard --json results.json

    repeat       RepeatPrevious, k = 4, 8 and 32: the suit of the k-th last card
    autoencode   a deck said backwards, 8 to 16 cards; trained on all lengths, asked for each
    stability    100,000 random tokens: the largest element of M and the slope of its logarithm, for every calibration, without a limit

Every model is two blocks of width 64 around the memory. All Hadamard memories have a matrix of 24 x 24 a block and the same weights up to
the table of rows; `linear attention` has C = 1 and the same write, the fast-weight baseline. The GRU has as many weights
as the memory with random rows; its state is smaller. The paper's own tables are returns of agents and cannot be compared with these.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memseq.memories.gru import GRUConfig
from memseq.memories.stable_hadamard import CyclingRows, FixedRow, NoCalibration, NoRow, StableHadamardConfig
from memseq.models.stack import StackConfig
from memseq.ops.hadamard import scan_chunkwise
from memseq.recipes.fitting import Table, fit, weights
from memseq.state import state_bytes
from memseq.tasks.popgym import AutoencodeTask, RepeatPreviousTask
from memseq.tasks.task import Task

__all__ = ["MEMORIES", "main", "play", "stability"]

D, M = 64, 24
MEMORIES = {
    "random rows": StableHadamardConfig(d_model=D, memory_size=M),
    "cycling rows": StableHadamardConfig(d_model=D, memory_size=M, calibration=CyclingRows()),
    "fixed row": StableHadamardConfig(d_model=D, memory_size=M, calibration=FixedRow()),
    "no row": StableHadamardConfig(d_model=D, memory_size=M, calibration=NoRow()),
    "linear attention": StableHadamardConfig(d_model=D, memory_size=M, calibration=NoCalibration()),
    "gru": GRUConfig(d_model=D, hidden_size=31),
}
GAMES: dict[str, dict[str, Any]] = {
    "repeat_previous, k = 4": {"train_on": (RepeatPreviousTask(k=4),), "steps": 300, "batch_size": 32},
    "repeat_previous, k = 8": {"train_on": (RepeatPreviousTask(k=8, n_cards=32),), "steps": 600, "batch_size": 16},
    "repeat_previous, k = 32": {"train_on": (RepeatPreviousTask(k=32, n_cards=64),), "steps": 600, "batch_size": 16},
    "autoencode": {"train_on": tuple(AutoencodeTask(n_cards=n) for n in (8, 12, 16)), "steps": 600, "batch_size": 16},
}


def language_model(memory: Any, task: Task) -> Any:
    return StackConfig(vocab_size=task.vocab_size, d_model=D, layers=2 * (memory,), ff_mult=2.0).build()


def play(memory: Any, train_on: Sequence[Task], *, steps: int, batch_size: int = 32, lr: float = 1e-2, seed: int = 0) -> dict[str, Any]:
    """Train on games in turn, and ask each: accuracy on 512 test samples, each a stream with random rows of its own."""
    torch.manual_seed(seed)
    model = language_model(memory, train_on[0])

    def loss(step: int) -> Tensor:
        batch = train_on[step % len(train_on)].sample(batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(batch_size))
        return total / count

    seconds = fit(model, loss, steps=steps, lr=lr)
    scores = {}
    for task in train_on:
        batch = task.sample(512, seed=seed, split="test")
        with torch.no_grad():
            model.train()  # nothing here drops out: it is how streams get seeds of their own
            said = model(batch.inputs, model.init_state(512))[0]
            model.eval()
        scores[str(task.length)] = round(task.metric(said, batch)["accuracy"], 4)
    return {
        "accuracy": scores,
        "chance": {str(task.length): round(task.chance, 4) for task in train_on},
        "parameters": weights(model),
        "state_bytes": state_bytes(model.init_state(1)),
        "steps": steps,
        "cpu_seconds": round(seconds, 1),
    }


@torch.no_grad()
def stability(calibration: str, *, tokens: int = 100_000, size: int = 24, scale: float = 0.3, seed: int = 0) -> dict[str, Any]:
    """M_t = C_t M_{t-1} + U_t on noise, without a limit: the largest element seen, and the growth of log max |M| from the first to the
    second half, a thousand tokens.

    Arguments of C have the standard deviation `scale`. `gates` is C = sigmoid, half of a calibration, as in gated memories.
    """
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(128, size, generator=generator)
    M, peaks = torch.zeros(1, size, size), []
    for _ in range(tokens // 500):
        k, v, c = (torch.randn(1, 500, size, generator=generator) for _ in range(3))
        rows = {
            "random rows": table[torch.randint(128, (1, 500), generator=generator)],
            "fixed row": table[:1, None].expand(1, 500, size),
            "no row": torch.full((1, 500, size), scale),
            "gates": table[torch.randint(128, (1, 500), generator=generator)],
        }
        C = 2 * (2 * c[..., None] * rows[calibration][..., None, :]).sigmoid()
        states = scan_chunkwise(C / 2 if calibration == "gates" else C, k.relu()[..., None] * v[..., None, :] / size, M)
        M = states[:, -1]
        peaks.append(float(states.abs().max()))
    half = len(peaks) // 2
    early, late = (torch.tensor(part).log().mean() for part in (peaks[:half], peaks[half:]))
    return {
        "finite": bool(torch.tensor(peaks).isfinite().all()),
        "largest": round(max(peaks), 3),
        "median_of_the_largest": round(float(torch.tensor(peaks).median()), 3),
        "log_slope_per_thousand_tokens": round(float(late - early) / (tokens / 2000), 5),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Stable Hadamard memory: games of cards, and what keeps the matrix stable.")
    parser.add_argument("--only", default="stability,repeat,autoencode", help="parts to run")
    parser.add_argument("--names", default=",".join(MEMORIES), help="memories to train, their names with commas between")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of them (default 0)")
    parser.add_argument("--steps", type=int, help="of every training, in place of each part's own")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the streams of stability (default %(default)s)")
    parser.add_argument("--json", help="write the result to this file; rows of other parts that it holds stay")
    given = parser.parse_args(arguments)
    parts, chosen = given.only.split(","), given.names.split(",")
    table = Table("python -m memseq.recipes.stable_hadamard", given.json)
    if "stability" in parts:
        for name in ("random rows", "fixed row", "no row", "gates"):
            table.add(part="stability", name=name, **stability(name, tokens=given.tokens))
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for game, settings in GAMES.items():
            if any(game.startswith(part) for part in parts if part in ("repeat", "autoencode")):
                settings = settings | {"steps": given.steps or settings["steps"]}
                for name, memory in MEMORIES.items():
                    if name in chosen:
                        scores = play(memory, **settings, seed=seed)
                        table.add(part=game.split(",")[0], task=game, name=name, seed=seed, **scores)


if __name__ == "__main__":
    main()

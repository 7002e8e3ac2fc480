"""Forecasts of series by memories: the next 96 hours of each of the seven series of ETTh1, from the last 96.

Sources: the series and its split are those of Informer (Zhou et al., arXiv:2012.07436); that a memory forecasts about as well as a
Transformer is claimed by Attention as an RNN (Feng et al., arXiv:2405.13956) and by Titans (Behrouz et al., arXiv:2501.00663).

    python -m memseq.recipes.forecasting data/ett --json results.json

Every reader is two blocks around a memory, equal in width, depth, steps, samples and, by the width of its feedforward, about equal in
weights; beside them the last value again, and the linear map of the last 96 hours by least squares. Errors are mean squares of series
normalised by the training months.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.memories.aaren import AarenConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.titans import TitansConfig
from memseq.models.stack import Block, StackConfig
from memseq.recipes.fitting import Table, fit, weights
from memseq.tasks.series import Forecasts, etth1

__all__ = ["Reader", "SeriesReader", "errors_of", "forecast", "main", "readers", "without_learning"]

CONTEXT = HORIZON = 96
PATCH = 8  # hours a token
D = 32


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One row."""

    name: str
    memory: Any
    ff_mult: float = 2.0


def readers() -> list[Reader]:
    """Every row that is trained. Titans has gates, a convolution and first weights more than the others, and less of a feedforward."""
    size: dict[str, Any] = {"d_model": D, "n_heads": 4}
    titans: dict[str, Any] = {**size, "segment_length": 4, "expansion": 1}
    return [
        Reader(name="aaren", memory=AarenConfig(**size)),
        Reader(name="attention", memory=AttentionConfig(**size)),
        Reader(name="titans, a matrix", memory=TitansConfig(**titans, depth=1), ff_mult=1.0),
        Reader(name="titans, two layers", memory=TitansConfig(**titans), ff_mult=1.0),
    ]


class SeriesReader(nn.Module):
    """A causal reader of numbers: a projection and a learned position a step, blocks around one kind of memory, and a linear head."""

    def __init__(
        self, memory: Any, *, channels: int, outputs: int, context: int, n_layers: int = 2, dropout: float = 0.0, ff_mult: float = 2.0
    ) -> None:
        super().__init__()
        around = StackConfig(vocab_size=2, d_model=memory.d_model, layers=(memory,), ff_mult=ff_mult, dropout=dropout)
        self.input = nn.Linear(channels, memory.d_model)
        self.position = nn.Parameter(0.02 * torch.randn(context, memory.d_model))
        self.blocks = nn.ModuleList(Block(around, memory) for _ in range(n_layers))
        self.norm = nn.LayerNorm(memory.d_model)
        self.head = nn.Linear(memory.d_model, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, channels] to [B, T, outputs], from a new stream."""
        h = self.input(x) + self.position[: x.shape[1]]
        for block in self.blocks:
            h = block.think(block.remember(h, block.init_state(len(x)))[0])
        return self.head(self.norm(h))


def forecast(what: Reader, data: Forecasts, *, steps: int = 2000, batch_size: int = 8, seed: int = 0) -> dict[str, Any]:
    """Each channel is a series of its own, read in patches of 8 hours as differences from its first value; after every patch the reader
    says the next 96 values, as differences from the present one. All of it is known as the stream goes."""
    torch.manual_seed(seed)
    model = SeriesReader(what.memory, channels=PATCH, outputs=HORIZON, context=CONTEXT // PATCH, ff_mult=what.ff_mult)
    windows = Forecasts.windows(data.train, CONTEXT + HORIZON)

    def read(seen: Tensor) -> Tensor:
        """[n, 96] to [n, patches, 96]."""
        return seen[:, PATCH - 1 :: PATCH, None] + model((seen - seen[:, :1]).unflatten(1, (-1, PATCH)))

    def loss(_: int) -> Tensor:
        rows = windows[torch.randint(len(windows), (batch_size,))].mT.flatten(0, 1)
        coming = rows[:, PATCH:].unfold(1, HORIZON, PATCH)
        return F.mse_loss(read(rows[:, :CONTEXT]), coming)

    seconds = fit(model, loss, steps=steps, lr=2e-3)
    with torch.no_grad():
        errors = {part: errors_of(lambda seen: read(seen)[:, -1], getattr(data, part)) for part in ("valid", "test")}
    return {"mse": errors, "parameters": weights(model), "steps": steps, "cpu_seconds": round(seconds, 1)}


def errors_of(answer: Any, part: Tensor, *, every: int = 1) -> float:
    """The mean square over all windows of a part and all channels; `answer` takes contexts [n, 96] to [n, 96]."""
    total, count = 0.0, 0
    for windows in Forecasts.windows(part, CONTEXT + HORIZON, every=every).split(64):
        rows = windows.mT.flatten(0, 1)
        total += float((answer(rows[:, :CONTEXT]) - rows[:, CONTEXT:]).square().sum())
        count += rows[:, CONTEXT:].numel()
    return round(total / count, 4)


def without_learning(data: Forecasts) -> dict[str, dict[str, float]]:
    """The last value again; and the linear map of the last 96 differences from it, by least squares over all training windows."""
    rows = Forecasts.windows(data.train, CONTEXT + HORIZON).mT.flatten(0, 1).double()
    last = rows[:, CONTEXT - 1 : CONTEXT]
    seen, coming = rows[:, :CONTEXT] - last, rows[:, CONTEXT:] - last
    ridge = 1e-3 * len(rows) * torch.eye(CONTEXT, dtype=torch.float64)
    W = torch.linalg.solve(seen.T @ seen + ridge, seen.T @ coming).float()
    players = {"last value": lambda x: x[:, -1:].expand_as(x), "linear": lambda x: x[:, -1:] + (x - x[:, -1:]) @ W}
    return {name: {part: errors_of(play, getattr(data, part)) for part in ("valid", "test")} for name, play in players.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Forecasts of ETTh1 by memories, a Transformer and a linear map.")
    parser.add_argument("folder", help="of ETTh1.csv, packed or not")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row (default 3)")
    parser.add_argument("--steps", type=int, default=2000, help="of a training (default %(default)s)")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    table, series = Table("python -m memseq.recipes.forecasting FOLDER", given.json), etth1(given.folder, context=CONTEXT)
    done = {(row["name"], row.get("seed")) for row in table.rows}
    for name, errors in without_learning(series).items():
        if given.only in name and (name, None) not in done:
            table.add(name=name, mse=errors)
    for seed in range(given.seeds):
        for what in readers():
            if given.only in what.name and (what.name, seed) not in done:
                table.add(name=what.name, seed=seed, **forecast(what, series, steps=given.steps, seed=seed))


if __name__ == "__main__":
    main()

"""What the review of recurrent networks claims, as numbers: errors vanish, cells that add remember, labels may need the future.

Source: arXiv:1506.00019 and the papers that it reviews; the adding problem is Hochreiter & Schmidhuber 1997, experiment 4.

    vanishing_gradients()   |d y_T / d x_{T - lag}| by lag: Elman below and above radius 1, LSTM, GRU
    adding_problem()        mean squared error of Elman and LSTM at equal numbers of weights; 1/6 is what no memory reaches
    labelling()             accuracy of LSTM, BLSTM and a BLSTM that looks a few tokens ahead, beside the bound for a causal reader
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.memories.bidirectional import BidirectionalConfig
from memseq.memories.elman import ElmanConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.look_ahead import LookAheadConfig
from memseq.memories.lstm import LSTMConfig, Plain

__all__ = [
    "Labels",
    "adding_batch",
    "adding_problem",
    "gradient_by_lag",
    "labelling",
    "vanishing_gradients",
]


# ---------------------------------------------------------------- vanishing gradients


def gradient_by_lag(config: Any, *, lag: int = 100, streams: int = 16, seed: int = 0) -> list[float]:
    """The mean length of d (v . y_T) / d x_{T - k} for k = 0 .. lag, on white noise, in a random direction v."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        memory = config.build().double()
        x = torch.randn(streams, lag + 1, config.d_model, dtype=torch.float64, requires_grad=True)
        y, _ = memory(x, memory.init_state(streams))
        (y[:, -1] * torch.randn_like(y[:, -1])).sum().backward()
    return x.grad.norm(dim=-1).mean(0).flip(0).tolist()


def vanishing_gradients(*, d_model: int = 32, lag: int = 100, seed: int = 0) -> dict[str, list[float]]:
    """The review's figure: lengths of gradients by lag, a curve a network."""
    networks = {
        "elman, radius 0.9": ElmanConfig(d_model=d_model, radius=0.9),
        "elman, radius 1.1": ElmanConfig(d_model=d_model, radius=1.1),
        "lstm, forget bias 1": LSTMConfig(d_model=d_model),
        "lstm, forget bias 5": LSTMConfig(d_model=d_model, cell=Plain(forget_bias=5.0)),
        "gru": GRUConfig(d_model=d_model),
    }
    return {name: gradient_by_lag(config, lag=lag, seed=seed) for name, config in networks.items()}


# ---------------------------------------------------------------- training, for both tasks below


Batch = tuple[Tensor, Tensor]  # what is read [B, T, D], and what is to be said of it


def trained(
    config: Any, draw: Callable[[torch.Generator], Batch], loss: Callable[[Tensor, Tensor], Tensor], *, steps: int, lr: float, seed: int
) -> Memory[Any]:
    """Adam with the gradient clipped to length 1, from fresh states at every batch; the rate falls to zero along a cosine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        memory = config.build()
    generator = torch.Generator().manual_seed(2 * seed)  # even numbers train, odd ones test
    optimizer = torch.optim.Adam(memory.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, target = draw(generator)
        optimizer.zero_grad()
        loss(memory(x, memory.init_state(len(x)))[0], target).backward()
        torch.nn.utils.clip_grad_norm_(memory.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return memory


@torch.no_grad()
def read(memory: Memory[Any], x: Tensor) -> Tensor:
    return memory(x, memory.init_state(len(x)))[0]


# ---------------------------------------------------------------- the adding problem


def adding_batch(batch_size: int, length: int, generator: torch.Generator) -> tuple[Float[Tensor, "B T 2"], Float[Tensor, "B"]]:
    """Uniform numbers, of which one in each half is marked; the target is the sum of the two that are marked."""
    numbers = torch.rand(batch_size, length, generator=generator)
    half = length // 2
    first = torch.randint(half, (batch_size,), generator=generator)
    second = torch.randint(half, length, (batch_size,), generator=generator)
    marks = F.one_hot(first, length) + F.one_hot(second, length)
    return torch.stack([numbers, marks.to(numbers.dtype)], dim=-1), (numbers * marks).sum(1)


def adding_problem(*, length: int = 100, steps: int = 3000, batch_size: int = 32, lr: float = 1e-2, seed: int = 0) -> dict[str, float]:
    """Mean squared error on 2,000 new sequences after `steps` batches. Both networks have about 4,500 weights."""
    networks = {"elman": ElmanConfig(d_model=2, hidden_size=65), "lstm": LSTMConfig(d_model=2, hidden_size=32)}
    scores = {}
    x, target = adding_batch(2000, length, torch.Generator().manual_seed(2 * seed + 1))

    def draw(generator: torch.Generator) -> Batch:
        return adding_batch(batch_size, length, generator)

    def error(y: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(y[:, -1, 0], target)

    for name, config in networks.items():
        memory = trained(config, draw, error, steps=steps, lr=lr, seed=seed)
        scores[name] = float(error(read(memory, x), target))
        scores[f"{name} weights"] = sum(p.numel() for p in memory.parameters())
    return scores


# ---------------------------------------------------------------- labels that need the future


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Symbols in a row; an even one is labelled with the symbol `reach` places before it, an odd one with that after it."""

    n_symbols: int = 4
    reach: int = 5
    length: int = 40

    @property
    def causal_bound(self) -> float:
        """The best accuracy without the future: even symbols are known, odd ones guessed."""
        return 0.5 + 0.5 / self.n_symbols

    def batch(self, batch_size: int, generator: torch.Generator) -> tuple[Float[Tensor, "B T V"], Int64[Tensor, "B T"]]:
        """Symbols as indicator vectors, and their labels; -100 where the labelling symbol would lie outside."""
        symbols = torch.randint(self.n_symbols, (batch_size, self.length), generator=generator)
        before, after = (symbols.roll(shift, dims=1) for shift in (self.reach, -self.reach))
        labels = torch.where(symbols % 2 == 0, before, after)
        labels[:, : self.reach] = labels[:, -self.reach :] = -100
        return F.one_hot(symbols, self.n_symbols).float(), labels


def late(labels: Int64[Tensor, "B T"], by: int) -> Int64[Tensor, "B T"]:
    """The labels `by` places later, for a stream that answers late."""
    return F.pad(labels, (by, 0), value=-100)[:, : labels.shape[1]]


def labelling(*, task: Labels = Labels(), steps: int = 800, batch_size: int = 32, lr: float = 1e-2, seed: int = 0) -> dict[str, float]:
    """Accuracy on 1,000 new rows. `blstm` has read all of the future, `look-ahead blstm` streams with a delay of `task.reach`."""
    one_way = LSTMConfig(d_model=task.n_symbols, hidden_size=32)
    networks = {
        "lstm": (one_way, 0),
        "blstm": (BidirectionalConfig(memory=one_way), 0),
        "look-ahead blstm": (LookAheadConfig(memory=one_way, look_ahead=task.reach), task.reach),
    }
    scores = {"causal bound": task.causal_bound}

    def error(y: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(y.flatten(0, 1), labels.flatten())

    x, labels = task.batch(1000, torch.Generator().manual_seed(2 * seed + 1))
    for name, (config, delay) in networks.items():

        def draw(generator: torch.Generator, delay: int = delay) -> Batch:
            x, labels = task.batch(batch_size, generator)
            return x, late(labels, delay)

        memory = trained(config, draw, error, steps=steps, lr=lr, seed=seed)
        asked = late(labels, delay)
        scores[name] = float((read(memory, x).argmax(-1) == asked)[asked >= 0].float().mean())
    return scores

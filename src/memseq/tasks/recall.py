"""Recall across segments: what was shown in the first segment is asked for in the last, with nothing but noise between.

Source: Memformer's question (Wu et al., arXiv:2010.06891) in its smallest form: a state carried from segment to segment
must hold what the segments themselves no longer show.

    segment 1          [show] a_1 ... a_m  noise ...
    segments 2 to S-1  noise
    segment S          [ask 1] ... [ask m]  noise ...          label at [ask j]: a_j

Shown symbols and noise are drawn independently and uniformly, so a player without memory guesses: 1 / n_symbols.
`n_segments` changes the length only, never the vocabulary: a model trained on 4 segments can be asked over 64.

`OverwrittenRecallTask` shows bindings again and again with new symbols; the answer is the latest.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["OverwrittenRecallTask", "RecallTask"]


@dataclass(frozen=True, kw_only=True)
class RecallTask(Task):
    """Tokens: symbols 0 to n_symbols - 1, noise, [show], [ask 1] to [ask n_shown]."""

    name: ClassVar[str] = "recall"
    source: ClassVar[str] = "arXiv:2010.06891"

    n_segments: int = 4  # S
    segment_length: int = 12  # L
    n_shown: int = 4  # m: symbols to keep
    n_symbols: int = 16  # kinds of symbols
    n_noise: int = 16  # kinds of noise, of their own; 0 draws the noise from the symbols, so that only [show] tells them apart

    def __post_init__(self) -> None:
        _at_least(self, n_segments=2, segment_length=2, n_shown=1, n_symbols=2, n_noise=0)
        if self.n_shown + 1 > self.segment_length:
            raise ConfigError(
                f"n_shown={self.n_shown} symbols and their marker do not fit into segment_length={self.segment_length};"
                f" use segment_length={self.n_shown + 1} or more"
            )

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + self.n_noise + 1 + self.n_shown

    @property
    def length(self) -> int:
        return self.n_segments * self.segment_length

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    @property
    def show(self) -> int:
        """The token that says: keep what follows."""
        return self.n_symbols + self.n_noise

    @property
    def distance(self) -> int:
        """Tokens from a symbol to the question for it."""
        return self.length - self.segment_length - 1

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        m, ask = self.n_shown, self.length - self.segment_length
        inputs = _noise(self, batch_size, generator)
        inputs[:, 0] = self.show
        shown = torch.randint(self.n_symbols, (batch_size, m), generator=generator)
        inputs[:, 1 : 1 + m] = shown
        inputs[:, ask : ask + m] = self.show + 1 + torch.arange(m)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, ask : ask + m] = shown
        return Batch(inputs, labels, {"distance": torch.full((batch_size,), self.distance)})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        shown = inputs[:, 1 : 1 + self.n_shown]
        return shown.gather(1, (inputs - self.show - 1).clamp(0, self.n_shown - 1))


@dataclass(frozen=True, kw_only=True)
class OverwrittenRecallTask(Task):
    """Every segment but the last shows `n_writes` of `n_keys` keys with a new symbol each; the last asks for all keys.

    segment s < S      [key k] a  [key k'] a' ...  noise         keys drawn without replacement; in segment 1 all of them
    segment S          [ask 1] ... [ask n_keys]  noise ...       label at [ask k]: the symbol last shown with key k

    Forgetting pays here: what was overwritten only stands in the way. Tokens: symbols, noise, keys, asks.
    """

    name: ClassVar[str] = "recall_overwritten"
    source: ClassVar[str] = "arXiv:2010.06891"

    n_segments: int = 4  # S
    segment_length: int = 12  # L
    n_keys: int = 4
    n_writes: int = 2  # keys shown in each segment from the second to the last but one
    n_symbols: int = 16
    n_noise: int = 16

    def __post_init__(self) -> None:
        _at_least(self, n_segments=2, segment_length=2, n_keys=1, n_writes=0, n_symbols=2, n_noise=0)
        if 2 * self.n_keys > self.segment_length:
            raise ConfigError(
                f"n_keys={self.n_keys} keys with their symbols do not fit into segment_length={self.segment_length};"
                f" use segment_length={2 * self.n_keys} or more"
            )
        if self.n_writes > self.n_keys:
            raise ConfigError(f"n_writes={self.n_writes} distinct keys cannot be drawn of n_keys={self.n_keys}")

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + self.n_noise + 2 * self.n_keys

    @property
    def length(self) -> int:
        return self.n_segments * self.segment_length

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, S, L, K, W = batch_size, self.n_segments, self.segment_length, self.n_keys, self.n_writes
        first_key = self.n_symbols + self.n_noise
        inputs = _noise(self, B, generator).view(B, S, L)
        symbols = torch.randint(self.n_symbols, (B, S, K), generator=generator)  # what a key would be given in each segment
        order = choose_distinct(B * S, K, K, generator).view(B, S, K)
        for start, stop, shown in ((0, 1, K), (1, S - 1, W)):
            keys = order[:, start:stop, :shown]
            inputs[:, start:stop, 0 : 2 * shown : 2] = first_key + keys
            inputs[:, start:stop, 1 : 2 * shown : 2] = symbols[:, start:stop].gather(2, keys)
        # the latest segment that showed each key, and the place of its symbol there
        place = 2 * order.argsort(2) + 1
        written = place < torch.tensor([2 * K] + (S - 2) * [2 * W] + [0])[:, None]
        latest = (written * torch.arange(S)[:, None]).amax(1)
        answer = symbols.gather(1, latest[:, None])[:, 0]
        asks = (S - 1) * L + torch.arange(K)
        inputs[:, -1, :K] = first_key + K + torch.arange(K)
        inputs = inputs.view(B, S * L)
        labels, age, writes = (torch.full_like(inputs, fill) for fill in (IGNORE, -1, -1))
        labels[:, asks] = answer
        age[:, asks] = S - 1 - latest  # segments since the last writing
        writes[:, asks] = written.sum(1)
        return Batch(inputs, labels, {"age": age, "writes": writes})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        return self._bound(inputs, latest=True)

    def stale(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        """A player that keeps the first binding of each key: right by chance where a key was overwritten."""
        return self._bound(inputs, latest=False)

    def _bound(self, inputs: Tensor, *, latest: bool) -> Tensor:
        first_key = self.n_symbols + self.n_noise
        keys = first_key + torch.arange(self.n_keys)
        times = torch.arange(1, inputs.shape[1] + 1) if latest else torch.arange(inputs.shape[1], 0, -1)
        at = ((inputs[..., None] == keys) * times[:, None]).argmax(1)  # [B, K]
        bound = inputs.gather(1, at + 1)
        return bound.gather(1, (inputs - first_key - self.n_keys).clamp(0, self.n_keys - 1))


def _noise(task: RecallTask | OverwrittenRecallTask, batch_size: int, generator: torch.Generator) -> Tensor:
    """Uniform noise, of its own kinds or, where it has none, of the symbols."""
    low, high = (task.n_symbols, task.n_symbols + task.n_noise) if task.n_noise else (0, task.n_symbols)
    return torch.randint(low, high, (batch_size, task.length), generator=generator)


def _at_least(task: Task, **least: int) -> None:
    for name, low in least.items():
        if getattr(task, name) < low:
            raise ConfigError(f"{name}={getattr(task, name)} is too small for {task.name}; use {low} or more")

"""Recall with a horizon: pairs of keys and values without end; a key that was shown a while ago comes again, and so does its value.

Source: the streams on which Stuffed Mamba (Chen et al., arXiv:2410.07145) asks whether a memory has learned to forget, as a task of this
library: only the last tokens matter, and the stream may be longer than any that was trained on.

    pair i     k v                    with p = 1/2 new: k any key, v any value
               k v, label v at k      else k of one of the last `horizon` / 2 pairs, v what was last shown with it

A key may be given a new value at any time; the answer is the latest. Keys are drawn of many, so that a short stream seldom shows one
twice with different values: a memory may then keep everything, and one that keeps everything fails in a long one. The
label stands at the key: `logits[:, i]` has just read it. Tokens: keys 0 to n_keys - 1, then values.

A player without memory guesses among all values, 1 / n_values.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["HorizonRecallTask"]


@dataclass(frozen=True, kw_only=True)
class HorizonRecallTask(Task):
    """`slices["place"]` is where a question stands, to a power of two."""

    name: ClassVar[str] = "recall_horizon"
    source: ClassVar[str] = "arXiv:2410.07145"

    n_tokens: int = 128  # T
    horizon: int = 64  # tokens back to the pair that comes again, at most
    n_keys: int = 128
    n_values: int = 32

    def __post_init__(self) -> None:
        if self.n_tokens < 4 or self.n_tokens % 2:
            raise ConfigError(f"n_tokens={self.n_tokens} must be even and at least 4: a pair, and a question")
        if self.horizon < 2 or self.horizon % 2:
            raise ConfigError(f"horizon={self.horizon} must be even and at least 2: whole pairs")
        if self.n_keys < 1 or self.n_values < 2:
            raise ConfigError(f"n_keys={self.n_keys} and n_values={self.n_values} are too few; use at least 1 and 2")

    @property
    def vocab_size(self) -> int:
        return self.n_keys + self.n_values

    @property
    def length(self) -> int:
        return self.n_tokens

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, n = batch_size, self.n_tokens // 2
        keys = torch.randint(self.n_keys, (B, n), generator=generator)
        values = torch.randint(self.n_values, (B, n), generator=generator)
        back = 1 + (torch.rand(B, n, generator=generator) * torch.arange(n).clamp(max=self.horizon // 2)).long()
        asked = torch.rand(B, n, generator=generator) < 0.5
        asked[:, 0] = False
        rows, latest = torch.arange(B), torch.zeros(B, self.n_keys, dtype=torch.int64)
        for i in range(n):
            again = asked[:, i]
            keys[:, i] = torch.where(again, keys[rows, (i - back[:, i]).clamp(min=0)], keys[:, i])
            values[:, i] = torch.where(again, latest[rows, keys[:, i]], values[:, i])
            latest[rows, keys[:, i]] = values[:, i]
        inputs = torch.stack([keys, self.n_keys + values], dim=2).flatten(1)
        labels, place = torch.full_like(inputs, IGNORE), torch.full_like(inputs, -1)
        labels[:, ::2] = torch.where(asked, self.n_keys + values, IGNORE)
        place[:, ::2] = (2 ** torch.arange(1, 2 * n, 2).double().log2().floor()).long()
        return Batch(inputs, labels, {"place": place})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        rows, latest = torch.arange(len(inputs)), torch.zeros(len(inputs), self.n_keys, dtype=torch.int64)
        for i in range(0, inputs.shape[1] - 1, 2):
            said[:, i] = latest[rows, inputs[:, i]]
            latest[rows, inputs[:, i]] = inputs[:, i + 1]
        return said

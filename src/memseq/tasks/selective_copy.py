"""Selective copying: a few symbols lie scattered in noise; say them in order at the end.

Source: Mamba (Gu & Dao, arXiv:2312.00752), after Jing et al. and Arjovsky et al. (arXiv:1511.06464).

    inputs     .  a_1  .  .  a_2  .  ...  a_m  .  [say] ... [say]
    labels                                          a_1 ...  a_m

`.` is noise. Where the symbols lie differs from row to row, so a memory must choose what it keeps; with `scattered=False` they
come first, and a fixed delay is enough (the plain copying of the same sources). A player without memory guesses.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["SelectiveCopyTask"]


@dataclass(frozen=True, kw_only=True)
class SelectiveCopyTask(Task):
    """Tokens: symbols 0 to n_symbols - 1, noise, [say]."""

    name: ClassVar[str] = "selective_copy"
    source: ClassVar[str] = "arXiv:2312.00752"

    n_tokens: int = 256  # before the first [say]; the paper: 4096
    n_source: int = 8  # m, symbols to keep; the paper: 16
    n_symbols: int = 16
    scattered: bool = True

    def __post_init__(self) -> None:
        if self.n_source < 1 or self.n_symbols < 2:
            raise ConfigError(f"n_source={self.n_source} of n_symbols={self.n_symbols} is too little; use at least 1 of 2")
        if self.n_tokens < self.n_source:
            raise ConfigError(f"n_source={self.n_source} symbols do not fit into n_tokens={self.n_tokens}; use {self.n_source} or more")

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 2

    @property
    def length(self) -> int:
        return self.n_tokens + self.n_source

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        symbols = torch.randint(self.n_symbols, (batch_size, self.n_source), generator=generator)
        if self.scattered:
            places = choose_distinct(batch_size, self.n_source, self.n_tokens, generator).sort(dim=1).values
        else:
            places = torch.arange(self.n_source).expand(batch_size, -1)
        inputs = torch.full((batch_size, self.length), self.n_symbols)
        inputs[:, self.n_tokens :] = self.n_symbols + 1
        inputs.scatter_(1, places, symbols)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, self.n_tokens :] = symbols
        place = torch.full_like(inputs, -1)
        place[:, self.n_tokens :] = torch.arange(self.n_source)
        return Batch(inputs, labels, {"place": place})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        said[:, self.n_tokens :] = inputs[inputs < self.n_symbols].view(len(inputs), self.n_source)
        return said

"""Copy and reverse: a string is read once and said again, symbol by symbol, without being shown what was said.

Source: Recurrent Memory Transformer (Bulatov et al., arXiv:2207.06881): the source is said twice after a start token,
24 symbols in and 48 out; copying as a test of memory is older (Hochreiter & Schmidhuber 1997; Graves et al. 2014).

    inputs     a_1 ... a_n  [go] [more] ... [more]
    labels      -       -    a_1  a_2  ...   a_n  a_1 ... a_n        (repeats = 2)

The answer is not fed back: the inputs of the second part hold no symbol, so nothing but the memory can tell them.
A player without memory guesses: 1 / n_symbols.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["CopyTask", "ReverseTask"]


@dataclass(frozen=True, kw_only=True)
class CopyTask(Task):
    """Tokens: symbols 0 to n_symbols - 1, [go], [more]."""

    name: ClassVar[str] = "copy"
    source: ClassVar[str] = "arXiv:2207.06881"

    n_source: int = 24  # symbols to keep
    n_symbols: int = 10
    repeats: int = 2  # times the source is said

    def __post_init__(self) -> None:
        for field, low in (("n_source", 1), ("n_symbols", 2), ("repeats", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small for {self.name}; use {low} or more")

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 2

    @property
    def length(self) -> int:
        return self.n_source * (1 + self.repeats)

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    def answer(self, source: Int64[Tensor, "B n"]) -> Int64[Tensor, "B n"]:
        """What is said, once, of a source."""
        return source

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        n = self.n_source
        source = torch.randint(self.n_symbols, (batch_size, n), generator=generator)
        inputs = torch.full((batch_size, self.length), self.n_symbols + 1)
        inputs[:, :n] = source
        inputs[:, n] = self.n_symbols
        labels = torch.full_like(inputs, IGNORE)
        labels[:, n:] = self.answer(source).repeat(1, self.repeats)
        said = torch.full_like(inputs, -1)
        said[:, n:] = torch.arange(self.repeats).repeat_interleave(n)
        return Batch(inputs, labels, {"repeat": said})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        source = inputs[:, : self.n_source]
        return torch.cat([source, self.answer(source).repeat(1, self.repeats)], dim=1)


@dataclass(frozen=True, kw_only=True)
class ReverseTask(CopyTask):
    """`CopyTask` said backwards, once by default: the last symbol is the nearest."""

    name: ClassVar[str] = "reverse"

    repeats: int = 1

    def answer(self, source: Int64[Tensor, "B n"]) -> Int64[Tensor, "B n"]:
        return source.flip(1)

"""Induction: once a marker was followed by some token; the marker comes again, and so does the token.

Source: Mamba (Gu & Dao, arXiv:2312.00752); the head that does it in Transformers is Olsson et al. (arXiv:2209.11895).

    inputs     a b [!] x c d e ... [!]
    label                           x

Everything but the marker is drawn uniformly. A model trained at one length can be asked at any other: the vocabulary is the
same. `slices["distance"]` is how long ago x was read, to a power of two.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["InductionTask"]


@dataclass(frozen=True, kw_only=True)
class InductionTask(Task):
    """Tokens: symbols 0 to n_symbols - 1 and the marker."""

    name: ClassVar[str] = "induction"
    source: ClassVar[str] = "arXiv:2312.00752"

    n_tokens: int = 256  # T, both markers included
    n_symbols: int = 15  # with the marker the paper's 16

    def __post_init__(self) -> None:
        if self.n_symbols < 2:
            raise ConfigError(f"n_symbols={self.n_symbols} leaves nothing to ask; use 2 or more")
        if self.n_tokens < 3:
            raise ConfigError(f"n_tokens={self.n_tokens} has no room for marker, token, marker; use 3 or more")

    @property
    def vocab_size(self) -> int:
        return self.n_symbols + 1

    @property
    def length(self) -> int:
        return self.n_tokens

    @property
    def chance(self) -> float:
        return 1 / self.n_symbols

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        inputs = torch.randint(self.n_symbols, (batch_size, self.n_tokens), generator=generator)
        first = torch.randint(self.n_tokens - 2, (batch_size,), generator=generator)
        rows, last = torch.arange(batch_size), self.n_tokens - 1
        inputs[rows, first] = self.n_symbols
        inputs[:, last] = self.n_symbols
        labels = torch.full_like(inputs, IGNORE)
        labels[:, last] = inputs[rows, first + 1]
        distance = (last - first - 1).double().log2().floor().exp2().long()
        return Batch(inputs, labels, {"distance": distance})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        first = (inputs == self.n_symbols).int().argmax(1)
        said = torch.zeros_like(inputs)
        said[:, -1] = inputs[torch.arange(len(inputs)), first + 1]
        return said

"""Tasks whose need of memory is a dial: the parity of the last N bits, and whether a bit equals the one N - 1 steps ago.

Source: Khajehabdollahi et al., arXiv:2309.12927, after N-parity and the delayed match to sample of working-memory research.

    ParityTask    label at the end: (b_{T-N+1} + ... + b_T) mod 2         bits of a row are 1 with a probability of its own
    MatchTask     label at the end: [b_{T-N+1} = b_T]                     bits are fair, else one answer would be likelier

Rows are of different lengths in the source (T uniform in N + 2 ... 4 N + 1). Here a row of `length` tokens begins with as many
blanks as it is short, so that batches are rectangular and a model learns to begin anywhere. Several N can be asked of one stream by
`heads`: the source's curricula keep a head for every N that was mastered, all reading the same state.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["MatchTask", "ParityTask"]

BLANK = 2  # after the bits 0 and 1


@dataclass(frozen=True, kw_only=True)
class ParityTask(Task):
    """Tokens: 0, 1, blank. Labels: 0, 1."""

    name: ClassVar[str] = "parity"
    source: ClassVar[str] = "arXiv:2309.12927"

    n_bits: int = 2  # N
    most: int | None = None  # the largest N in training, which sets the lengths; None: n_bits

    def __post_init__(self) -> None:
        if self.n_bits < 2:
            raise ConfigError(f"n_bits={self.n_bits} asks for no memory; use 2 or more")
        if self.most is not None and self.most < self.n_bits:
            raise ConfigError(f"most={self.most} is less than n_bits={self.n_bits}; use the largest N that is trained")

    @property
    def vocab_size(self) -> int:
        return 3

    @property
    def length(self) -> int:
        return 4 * (self.most or self.n_bits) + 1

    @property
    def chance(self) -> float:
        """Of the player who sees the last bit alone: it tells something of its row's probability, the less the larger N."""
        n = self.n_bits - 1  # E[(1 - 2 p)^n] where the last bit was 1, p being uniform before
        return 0.5 + 0.5 / (n + 1 + n % 2)

    def _probabilities(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return torch.rand(batch_size, 1, generator=generator)

    def answer(self, bits: Int64[Tensor, "B N"]) -> Int64[Tensor, "B"]:
        """What the last N bits say."""
        return bits.sum(1) % 2

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        inputs = self.stream(batch_size, generator)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, -1] = self.answer(inputs[:, -self.n_bits :])
        return Batch(inputs, labels, {"answer": labels[:, -1]})

    def stream(self, batch_size: int, generator: torch.Generator) -> Int64[Tensor, "B T"]:
        """Bits after blanks: what all heads of a curriculum read."""
        most = self.most or self.n_bits
        ones = torch.rand(batch_size, self.length, generator=generator) < self._probabilities(batch_size, generator)
        n_read = torch.randint(most + 2, 4 * most + 2, (batch_size, 1), generator=generator)
        return ones.long().masked_fill(torch.arange(self.length) < self.length - n_read, BLANK)

    def heads(self, inputs: Int64[Tensor, "B T"], sizes: list[int]) -> Int64[Tensor, "B heads"]:
        """The answers for several N of one stream, one column each. Raises `ConfigError` where a size is above `most`."""
        most = self.most or self.n_bits
        for size in sizes:
            if not 2 <= size <= most:
                raise ConfigError(f"a head for N={size} cannot be asked of this stream; use 2 to {most}, or a task with most={size}")
        return torch.stack([self.answer(inputs[:, -size:]) for size in sizes], dim=1)

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        said[:, -1] = self.answer(inputs[:, -self.n_bits :])
        return said


@dataclass(frozen=True, kw_only=True)
class MatchTask(ParityTask):
    """Delayed match to sample: the bit N - 1 steps ago against the last."""

    name: ClassVar[str] = "delayed_match"

    @property
    def chance(self) -> float:
        return 0.5

    def _probabilities(self, batch_size: int, generator: torch.Generator) -> Tensor:
        return torch.full((batch_size, 1), 0.5)

    def answer(self, bits: Int64[Tensor, "B N"]) -> Int64[Tensor, "B"]:
        return (bits[:, 0] == bits[:, -1]).long()

"""Set disjointness: two lists that share one element; say which. The order of the lists decides what must be remembered.

Source: *Just read twice* (Arora et al., arXiv:2407.05483), drawn here for a whole batch at once.

    tokens        0 nothing (free for masking)   1 first list   2 second list   3 answer   4 ... V-1 elements
    one reading   [1] a_1 ... a_n  [2] b_1 ... b_m
    inputs        one reading, `readings` times, then [3]
    label         at [3], the last position: the element that is in both lists

The n + m elements of the lists are distinct, but for one: a random element of the shorter list stands in a random place of the longer
one as well. Which half of the vocabulary a list is drawn from says nothing, because every sample shuffles anew.

A stream that has read a list must keep all of it to recognise an element of the second. With the short list first it keeps min(n, m)
elements, with the long list first max(n, m), unless it reads twice (readings=2) or knows the prefix before it reads it (JRT-RNN).

A player without memory guesses among all elements, 1 / (V - 4); one that remembers the shorter list among that, 1 / min(n, m)
(`among_shorter`).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["ANSWER", "FIRST", "NOTHING", "SECOND", "SetDisjointnessTask"]

NOTHING, FIRST, SECOND, ANSWER = 0, 1, 2, 3
SPECIAL = 4  # tokens below are no elements


@dataclass(frozen=True, kw_only=True)
class SetDisjointnessTask(Task):
    """Published: vocabulary 2048, sizes (4, 16) to (256, 4) in both orders."""

    name: ClassVar[str] = "set_disjointness"
    source: ClassVar[str] = "arXiv:2407.05483"

    vocabulary: int = 256  # V, special tokens included
    n_first: int = 4  # n
    n_second: int = 16  # m
    readings: int = 1  # times that both lists are shown before the question

    def __post_init__(self) -> None:
        for field in ("n_first", "n_second", "readings"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")
        need = self.n_first + self.n_second + SPECIAL
        if self.vocabulary < need:
            raise ConfigError(f"vocabulary={self.vocabulary} cannot hold n_first + n_second distinct elements; use at least {need}")

    @property
    def vocab_size(self) -> int:
        return self.vocabulary

    @property
    def prefix_length(self) -> int:
        """Tokens before the question: what an encoder may read."""
        return self.length - 1

    @property
    def length(self) -> int:
        return self.readings * (self.n_first + self.n_second + 2) + 1

    @property
    def chance(self) -> float:
        return 1 / (self.vocabulary - SPECIAL)

    @property
    def among_shorter(self) -> float:
        """The accuracy of guessing among the elements of the shorter list."""
        return 1 / min(self.n_first, self.n_second)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, n, m = batch_size, self.n_first, self.n_second
        elements = SPECIAL + choose_distinct(B, n + m, self.vocabulary - SPECIAL, generator)
        first, second = elements[:, :n].clone(), elements[:, n:].clone()
        place_first = torch.randint(n, (B, 1), generator=generator)
        place_second = torch.randint(m, (B, 1), generator=generator)
        if n <= m:
            common = first.gather(1, place_first)
            second.scatter_(1, place_second, common)
        else:
            common = second.gather(1, place_second)
            first.scatter_(1, place_first, common)
        reading = torch.cat([torch.full((B, 1), FIRST), first, torch.full((B, 1), SECOND), second], dim=1)
        inputs = torch.cat([*[reading] * self.readings, torch.full((B, 1), ANSWER)], dim=1)
        labels = torch.full((B, self.length), IGNORE)
        labels[:, -1:] = common
        near = 2 ** (n + 1 - place_first + place_second).double().log2().floor().long()  # tokens between the two, a power of two
        return Batch(inputs, labels, {"distance": near[:, 0]})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        n = self.n_first
        first, second = inputs[:, 1 : n + 1], inputs[:, n + 2 : n + 2 + self.n_second]
        shared = (first[:, :, None] == second[:, None]).any(-1)
        return first.gather(1, shared.int().argmax(1, keepdim=True)).expand_as(inputs)

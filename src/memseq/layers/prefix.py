"""Memories that may read a prefix as an encoder does: all of it is known before any of it is read.

state = memory.encode(x_1 ... x_M, state)        adds what the encoder makes of the prefix: a sum, in pieces of any size and order
y, state = memory(x_1 ... x_M, state)            the prefix and everything after it, by the ordinary law
"""

from abc import abstractmethod
from typing import TypeVar

from jaxtyping import Bool, Float
from torch import Tensor

from memseq.contract import Memory

__all__ = ["PrefixMemory"]

S = TypeVar("S")


class PrefixMemory(Memory[S]):
    """A memory with a second verb, `encode`. One that encodes nothing is the memory without a prefix."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "B T D"], state: S, keep: Bool[Tensor, "B kept"] | None = None) -> S:
        """The state with the tokens of x that `keep` names (all where it is None) in the encoder's sum; nothing is read."""

    def read_prefix(
        self, x: Float[Tensor, "B T D"], state: S, keep: Bool[Tensor, "B kept"] | None = None
    ) -> tuple[Float[Tensor, "B T D"], S]:
        """Read x whose tokens in `keep` (all where it is None) are a prefix: every token sees them, the earlier ones too."""
        return self(x, self.encode(x, state, keep))

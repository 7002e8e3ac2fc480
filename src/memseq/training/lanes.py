"""Documents on lanes: what training reads, one segment of every lane at a time."""

from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["Segment"]


class Segment(NamedTuple):
    """One segment of B lanes."""

    tokens: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]  # the next token of the same document; -100 is not scored
    reset: Bool[Tensor, "B"]  # this row begins a document: fresh state before reading

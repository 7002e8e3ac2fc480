"""A language model that recurs from segment to segment over a backbone: pieces of any length, rows at places of their own.

A subclass says what a row's open segment is (`position` of its state: tokens read in it) and defines

    read_piece(tokens [B, n], state, opens=, closes=) -> h [B, n, D], state

for rows that are alike: all of them begin their segment with this piece or none does, and all of them end it or none does.
This file cuts a stream at every row's border and groups the rows. The backbone is `backbone`; `embedding`, `head` and `score`
are its own.
"""

from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.phases import by_phase
from memseq.models.backbone import Backbone
from memseq.models.language_model import LanguageModel

__all__ = ["OverBackbone", "SegmentModel", "as_large_as", "check_segments"]


@runtime_checkable
class SegmentState(Protocol):
    """A state that knows where in its segment each row is."""

    @property
    def position(self) -> Tensor: ...


S = TypeVar("S", bound=SegmentState)


def check_segments(config: Any) -> None:
    """Raise `ConfigError` unless `config.segment_length` and `config.n_slots` make sense."""
    if config.segment_length < 1:
        raise ConfigError(f"segment_length must be at least 1, got {config.segment_length}")
    if config.n_slots < 0:
        raise ConfigError(f"n_slots must be 0 (no memory) or more, got {config.n_slots}")


def as_large_as(gain: Float[Tensor, "D"], memory: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """What left a network's last norm, as large as the gain says: at the start as an embedding, among which it is fed."""
    return gain * memory * (memory.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


class OverBackbone:
    """What every config with a field `backbone` says of it."""

    @property
    def vocab_size(self: Any) -> int:
        return self.backbone.vocab_size

    @property
    def d_model(self: Any) -> int:
        return self.backbone.d_model


class SegmentModel(LanguageModel[S]):
    backbone: Backbone

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        return self.backbone.embedding

    @property
    def segment_length(self) -> int:
        return self.config.segment_length

    def read_piece(self, tokens: Int[Tensor, "B n"], state: S, *, opens: bool, closes: bool) -> tuple[Float[Tensor, "B n D"], S]:
        """Read a piece that lies in one segment of every row: its first token if `opens`, its last if `closes`."""
        raise TypeError(f"{type(self).__name__} must define read_piece(tokens, state, opens, closes)")

    def features(self, tokens: Int[Tensor, "B T"], state: S) -> tuple[Float[Tensor, "B T D"], S]:
        h = []
        while tokens.shape[1] > 0:
            room = self.segment_length - int(state.position.max())
            piece, tokens = tokens.tensor_split([room], dim=1)
            y, state = self.read_rows(piece, state)
            h.append(y)
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), state

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.backbone.head(h)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return self.backbone.score(h, targets)

    def read_rows(self, tokens: Tensor, state: S) -> tuple[Tensor, S]:
        """Rows that begin or end a segment with this piece are read apart from those that do not."""

        def read(piece: Tensor, rows: S) -> tuple[Tensor, S]:
            at = int(rows.position[0])
            return self.read_piece(piece, rows, opens=at == 0, closes=at + piece.shape[1] == self.segment_length)

        opens, closes = state.position == 0, state.position + tokens.shape[1] == self.segment_length
        return by_phase(read, tokens, state, opens + 2 * closes)

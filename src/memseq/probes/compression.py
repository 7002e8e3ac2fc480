"""How well a model predicts text, by how much of the stream it has read: bits per byte by position.

    bits_per_byte(model, documents, token_bytes=...)                    the state carried, as the model means it
    bits_per_byte(model, documents, token_bytes=..., forget_every=32)   the memory cleared every 32 tokens
    shallow(text)                                                       what gzip, xz and single-byte counts reach

A memory is worth what clearing it costs. If the state has leaves called `slots`, those are cleared and near context (a
window, the open segment) stays; else the whole state is. Positions are binned in powers of two, so that a curve over a
million tokens has twenty points.

Documents are read several at a time, without padding: the rows are cut where the first of them ends, and a row that ends
takes the next document with a fresh state.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from memseq.errors import ConfigError, DataError
from memseq.state import State, choose, leaf_names, rebuild, select, stack, state_bytes, tensors
from memseq.streams import reading

__all__ = ["Bin", "Curve", "bits_per_byte", "shallow"]

LOGITS = 1 << 23  # logits held at once: a piece is shorter where the vocabulary is larger


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Tokens whose place in their document is `first` to `last`, counted from 0."""

    first: int
    last: int
    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What was measured: the bins that hold tokens, and what a stream costs."""

    bins: tuple[Bin, ...]
    state_bytes: int  # of one stream, at most, between two pieces
    tokens_per_second: float

    @property
    def bits_per_byte(self) -> float:
        """Over all tokens."""
        return sum(b.nats for b in self.bins) / math.log(2) / sum(b.bytes for b in self.bins)

    @property
    def tokens(self) -> int:
        return sum(b.tokens for b in self.bins)


def bits_per_byte(
    model: Any,
    documents: Iterable[Iterable[Any]],
    *,
    token_bytes: Sequence[int] | Any,
    forget_every: int | None = None,
    streams: int = 8,
    piece: int = 256,
) -> Curve:
    """Read `documents` and score every token but the first of each, which nothing precedes.

    documents      of each the token ids, as an iterable of arrays: what `Text.chunks` yields, without the places
    token_bytes    how many bytes of text each token stands for, [V]
    forget_every   clear the memory before every token whose place is a multiple of this; None carries it
    streams        documents read side by side: speed only
    piece          tokens read at once at most: speed only
    """
    if forget_every is not None and forget_every < 1:
        raise ConfigError(f"forget_every={forget_every} clears nothing; use 1 or more tokens, or None to carry the memory")
    if streams < 1 or piece < 1:
        raise ConfigError(f"streams={streams} and piece={piece} must be at least 1")
    device = next(model.parameters()).device
    width = torch.as_tensor(np.asarray(token_bytes), dtype=torch.float64, device=device)
    piece = max(1, min(piece, LOGITS // (streams * len(width))))
    nats, count, size = (torch.zeros(64, dtype=torch.float64, device=device) for _ in range(3))
    began, scored, held = time.perf_counter(), 0, 0
    with reading(model):
        lanes = _Lanes(model, iter(documents), streams, device)
        while lanes.rows:
            length = lanes.room(piece, forget_every)
            if forget_every is not None:
                lanes.clear(forget_every)
            tokens, targets, places = lanes.take(length)
            logits, lanes.state = model(tokens, lanes.state)
            held = max(held, state_bytes(lanes.state) // len(lanes.rows))
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").double()
            bins = places.clamp(min=1).double().log2().floor().long().flatten()
            nats.index_add_(0, bins, loss)
            count.index_add_(0, bins, torch.ones_like(loss))
            size.index_add_(0, bins, width[targets.flatten()])
            scored += targets.numel()
            lanes.end()
    if not scored:
        raise DataError("there is no document of two tokens or more, so nothing to predict; give more text")
    spent = time.perf_counter() - began
    filled = [i for i in range(64) if count[i] > 0]
    return Curve(
        bins=tuple(
            Bin(first=2**i, last=2 ** (i + 1) - 1, nats=float(nats[i]), tokens=int(count[i]), bytes=max(1, int(size[i]))) for i in filled
        ),
        state_bytes=held,
        tokens_per_second=scored / spent,
    )


class _Lanes:
    """Documents side by side: row i is a document, the tokens of it that are at hand, and the place of the next."""

    def __init__(self, model: Any, documents: Iterator[Iterable[Any]], streams: int, device: torch.device) -> None:
        self.model, self.documents, self.device = model, documents, device
        self.rows: list[_Row] = []
        while len(self.rows) < streams and (row := self._next_row()) is not None:
            self.rows.append(row)
        self.state: State = model.init_state(max(1, len(self.rows)))

    def _next_row(self) -> "_Row | None":
        for document in self.documents:
            row = _Row(iter(document))
            if row.fill(2):
                return row
        return None

    def room(self, piece: int, every: int | None) -> int:
        """How many tokens every row can read at once: up to its next chunk, and up to where the memory is cleared."""
        for row in self.rows:
            row.fill(piece + 1)
        lengths = [len(row.ids) - 1 for row in self.rows]
        borders = [] if every is None else [every - row.place % every for row in self.rows]
        return min([piece, *lengths, *borders])

    def take(self, length: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """The next tokens of every row, the tokens that follow them, and the places of those."""
        ids = torch.from_numpy(np.stack([row.ids[: length + 1] for row in self.rows]).astype(np.int64)).to(self.device)
        places = torch.tensor([row.place for row in self.rows])[:, None] + torch.arange(1, length + 1)
        for row in self.rows:
            row.ids, row.place = row.ids[length:], row.place + length
        return ids[:, :-1], ids[:, 1:], places.to(self.device)

    def clear(self, every: int) -> None:
        """Forget in the rows that stand at a border."""
        due = [row.place % every == 0 and row.place > 0 for row in self.rows]
        if not any(due):
            return
        slots = [_is_slots(name) for name in leaf_names(self.state)]
        if not any(slots):
            self.renew(due)
            return
        fresh = tensors(self.model.init_state(len(self.rows)))
        mask = torch.tensor(due)
        leaves = zip(slots, fresh, tensors(self.state), strict=True)
        self.state = rebuild(self.state, [choose(mask, new, old) if is_slots else old for is_slots, new, old in leaves])

    def end(self) -> None:
        """Give the rows whose document is at its end another one, or close them."""
        over = [not row.fill(2) for row in self.rows]
        if any(over):
            following = [self._next_row() if ended else row for row, ended in zip(self.rows, over, strict=True)]
            open_rows = [i for i, row in enumerate(following) if row is not None]
            self.rows = [following[i] for i in open_rows]  # ty: ignore[invalid-assignment]
            if open_rows:
                self.state = select(self.state, open_rows)
                self.renew([over[i] for i in open_rows])

    def renew(self, due: Sequence[bool]) -> None:
        """A fresh state for some rows, which move behind the others: states that grow cannot be mixed in place."""
        kept, fresh = ([i for i, is_due in enumerate(due) if is_due is wanted] for wanted in (False, True))
        if fresh:
            new = self.model.init_state(len(fresh))
            self.state = stack([select(self.state, kept), new]) if kept else new
            self.rows = [self.rows[i] for i in [*kept, *fresh]]


class _Row:
    """One document: its tokens at hand, and the place in it of the first of them."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        self.chunks, self.place = chunks, 0
        self.ids = np.empty(0, dtype=np.int64)

    def fill(self, length: int) -> bool:
        """Have `length` tokens at hand, if the document holds them; whether at least two are."""
        while len(self.ids) < length and (chunk := next(self.chunks, None)) is not None:
            self.ids = np.concatenate([self.ids, np.asarray(chunk, dtype=np.int64)])
        return len(self.ids) >= 2


def _is_slots(name: str) -> bool:
    return "slots" in name.split(".")


def shallow(text: bytes) -> dict[str, float]:
    """Bits per byte of what learns nothing: single-byte counts, gzip and xz at their best settings, on all of `text` at once."""
    import gzip
    import lzma

    if not text:
        raise DataError("there is no text to compress (0 bytes)")
    counts = np.array(list(Counter(text).values()), dtype=np.float64)
    share = counts / counts.sum()
    return {
        "byte counts": float(-(share * np.log2(share)).sum()),
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
    }

"""Documents on lanes: what training reads, one segment of every lane at a time.

B lanes run side by side, and each reads one document after another from its first token to its last. A document begins
with `reset`, and a fresh state. Its tokens x_0 … x_n are read as x_0 … x_{n-1} and scored on x_1 … x_n, across segments
too; the rest of its last segment is filled up and not scored (target -100), and what is read there is forgotten by the
reset that follows.

Which lane reads which document depends on the seed and on the number of lanes over all processes, and on nothing else:
in every epoch the documents are shuffled anew and dealt like cards, lane i takes cards i, i + n, i + 2n, … A process of
rank r reads lanes r B … (r + 1) B - 1, so two processes read exactly what one would with twice the lanes.

A position is small and exact: per lane the document, the place of an open chunk in it and the tokens taken from that
chunk. Resuming opens each document there; nothing is read again from its beginning.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from memseq.errors import CheckpointError, ConfigError, DataError

__all__ = ["DocumentStream", "Documents", "EachOnce", "Lanes", "Segment", "SegmentSource", "StreamLanes", "TokenDocuments"]

Chunk = tuple[int, NDArray[Any]]  # where a chunk begins in its document (the document's own unit), and its token ids


class Segment(NamedTuple):
    """One segment of B lanes."""

    tokens: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]  # the next token of the same document; -100 is not scored
    reset: Bool[Tensor, "B"]  # this row begins a document: fresh state before reading

    def to(self, device: torch.device | str) -> "Segment":
        """Tokens and targets on `device`; `reset` stays on the host, where control flow reads it."""
        return Segment(self.tokens.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), self.reset)


@runtime_checkable
class Documents(Protocol):
    """Numbered documents that can be opened anywhere a chunk begins."""

    def __len__(self) -> int: ...

    def chunks(self, document: int, start: int = 0) -> Iterator[Chunk]:
        """The document's chunks from `start` on: 0, or a start that this method yielded before."""
        ...

    def at_least(self, count: int) -> "Documents":
        """The same tokens in `count` documents or more, long ones cut in parts; `self` where there are enough."""
        ...


@runtime_checkable
class DocumentStream(Protocol):
    """Documents that come one after another and cannot be counted, such as a streamed data set."""

    def take(self) -> tuple[Any, Iterator[Chunk]]:
        """The next document: a JSON value that finds it again, and its chunks. Endless: after the last comes the first."""
        ...

    def reopen(self, place: Any, start: int) -> Iterator[Chunk]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class SegmentSource(Protocol):
    """What a training loop reads: endless segments whose position can be saved as JSON and restored."""

    def __next__(self) -> Segment: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TokenDocuments:
    """Documents that are in memory already, as sequences of token ids."""

    CHUNK = 4096

    def __init__(self, documents: Any) -> None:
        self.documents = [np.asarray(d, dtype=np.int64).reshape(-1) for d in documents]
        if not self.documents:
            raise DataError("there are no documents; give at least one sequence of token ids")

    def __len__(self) -> int:
        return len(self.documents)

    def chunks(self, document: int, start: int = 0) -> Iterator[Chunk]:
        tokens = self.documents[document]
        for begin in range(start, len(tokens), self.CHUNK):
            yield begin, tokens[begin : begin + self.CHUNK]

    def at_least(self, count: int) -> "TokenDocuments":
        parts = list(self.documents)
        while len(parts) < count:
            longest = max(range(len(parts)), key=lambda i: len(parts[i]))
            half = len(parts[longest]) // 2
            if half < 2:
                raise DataError(f"{sum(map(len, parts))} tokens are too few for {count} lanes; use a smaller batch or more text")
            parts[longest : longest + 1] = [parts[longest][:half], parts[longest][half:]]
        return TokenDocuments(parts)


class _Reader:
    """One lane: an open document and how far it has been read."""

    def __init__(self) -> None:
        self.place: Any = None  # None: no document yet
        self.began = False
        self.held: deque[Chunk] = deque()
        self.chunks: Iterator[Chunk] = iter(())
        self.offset = 0  # tokens taken from the first chunk held
        self.count = 0  # tokens held and not taken

    def open(self, place: Any, chunks: Iterator[Chunk]) -> None:
        self.place, self.chunks, self.began, self.offset, self.count = place, chunks, False, 0, 0
        self.held.clear()

    def holds(self, n: int) -> bool:
        """Whether n tokens are still to come; reads on as far as that takes."""
        while self.count < n:
            chunk = next(self.chunks, None)
            if chunk is None:
                return False
            if len(chunk[1]):
                self.held.append(chunk)
                self.count += len(chunk[1])
        return True

    def take(self, tokens: NDArray[np.int64], targets: NDArray[np.int64]) -> bool:
        """Fill one row with the next tokens and what follows each; returns whether the document begins here."""
        self.holds(len(tokens) + 1)
        n = min(len(tokens), self.count - 1)
        line = self._peek(n + 1)
        tokens[:n], targets[:n] = line[:-1], line[1:]
        self.offset, self.count = self.offset + n, self.count - n
        while self.offset >= len(self.held[0][1]):  # the last target is held: it is the next token read
            self.offset -= len(self.held.popleft()[1])
        first, self.began = not self.began, True
        return first

    def _peek(self, n: int) -> NDArray[Any]:
        parts, at = [], self.offset
        for _, chunk in self.held:
            parts.append(chunk[at : at + n])
            n, at = n - len(parts[-1]), 0
            if n == 0:
                break
        return np.concatenate(parts)

    def position(self) -> dict[str, Any] | None:
        if self.place is None:
            return None
        return {"document": self.place, "start": self.held[0][0], "offset": self.offset}

    def restore(self, position: dict[str, Any] | None, reopen: Callable[[Any, int], Iterator[Chunk]]) -> None:
        self.open(None, iter(()))
        if position is not None:
            self.open(position["document"], reopen(position["document"], position["start"]))
            self.offset, self.began = position["offset"], True
            if self.holds(1):
                self.count -= self.offset


class _Lanes:
    """Rows of readers; subclasses say which document a lane reads next."""

    def __init__(self, *, batch_size: int, segment_length: int, rank: int, world: int) -> None:
        for name, value in (("batch_size", batch_size), ("segment_length", segment_length), ("world", world)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if not 0 <= rank < world:
            raise ConfigError(f"rank={rank} must lie between 0 and world - 1 = {world - 1}")
        self.batch_size, self.segment_length, self.rank, self.world = batch_size, segment_length, rank, world
        self._readers = [_Reader() for _ in range(batch_size)]

    def _row(self, reader: _Reader, tokens: NDArray[np.int64], targets: NDArray[np.int64], limit: int, deal: Callable[[], Any]) -> bool:
        for _ in range(limit + 1):
            if reader.holds(2):
                return reader.take(tokens, targets)
            reader.open(*deal())
        raise DataError("no document holds two tokens, so there is nothing to predict; give more text")

    def _blank(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        size = (self.batch_size, self.segment_length)
        return np.zeros(size, dtype=np.int64), np.full(size, -100, dtype=np.int64), np.zeros(self.batch_size, dtype=bool)

    def _shape(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("batch_size", "segment_length", "rank", "world")}

    def _check_shape(self, state: dict[str, Any]) -> None:
        for name, value in self._shape().items():
            if state[name] != value:
                raise CheckpointError(
                    f"the saved position in the text is of {name}={state[name]} and this run has {name}={value}; resume with the same"
                )


class Lanes(_Lanes):
    """Endless segments of shuffled documents; see the module's docstring.

    >>> next(Lanes(TokenDocuments([[1, 2, 3, 4, 5]]), batch_size=1, segment_length=3)).targets.tolist()
    [[2, 3, 4]]
    """

    def __init__(self, documents: Documents, *, batch_size: int, segment_length: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(batch_size=batch_size, segment_length=segment_length, rank=rank, world=world)
        self.documents, self.seed = documents.at_least(batch_size * world), seed
        self._dealt = [0] * batch_size  # cards each lane has taken since the first epoch
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __iter__(self) -> "Lanes":
        return self

    def __next__(self) -> Segment:
        tokens, targets, reset = self._blank()
        for row, reader in enumerate(self._readers):
            reset[row] = self._row(reader, tokens[row], targets[row], len(self.documents), lambda row=row: self._deal(row))
        return Segment(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(reset))

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON values: a few numbers a lane."""
        lanes = [reader.position() for reader in self._readers]
        return self._shape() | {"seed": self.seed, "documents": len(self.documents), "dealt": list(self._dealt), "lanes": lanes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_shape(state)
        if state["documents"] != len(self.documents) or state["seed"] != self.seed:
            raise CheckpointError(
                f"the saved position is in {state['documents']} documents shuffled with seed {state['seed']}, this run reads"
                f" {len(self.documents)} with seed {self.seed}; resume with the same text and seed"
            )
        self._dealt = list(state["dealt"])
        for reader, position in zip(self._readers, state["lanes"], strict=True):
            reader.restore(position, self.documents.chunks)

    def _deal(self, row: int) -> tuple[int, Iterator[Chunk]]:
        lanes, lane = self.batch_size * self.world, self.rank * self.batch_size + row
        cards = (len(self.documents) - lane + lanes - 1) // lanes  # this lane's share of every epoch
        epoch, card = divmod(self._dealt[row], cards)
        self._dealt[row] += 1
        document = int(self._order(epoch)[lane + card * lanes])
        return document, self.documents.chunks(document)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}  # slow lanes may be one behind
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(len(self.documents))
        return self._orders[epoch]


class StreamLanes(_Lanes):
    """Endless segments of documents that come one after another: the next free lane takes the next document.

    Under several processes each reads its own stream (`rank` names it), such as its shards of a data set.
    """

    EMPTY = 100_000  # documents without two tokens in a row, after which reading gives up

    def __init__(self, stream: DocumentStream, *, batch_size: int, segment_length: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(batch_size=batch_size, segment_length=segment_length, rank=rank, world=world)
        self.stream = stream

    def __iter__(self) -> "StreamLanes":
        return self

    def __next__(self) -> Segment:
        tokens, targets, reset = self._blank()
        for row, reader in enumerate(self._readers):
            reset[row] = self._row(reader, tokens[row], targets[row], self.EMPTY, self.stream.take)
        return Segment(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(reset))

    def state_dict(self) -> dict[str, Any]:
        return self._shape() | {"stream": self.stream.state_dict(), "lanes": [reader.position() for reader in self._readers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_shape(state)
        for reader, position in zip(self._readers, state["lanes"], strict=True):
            reader.restore(position, self.stream.reopen)
        self.stream.load_state_dict(state["stream"])


class EachOnce(_Lanes):
    """Every document once, in order, from beginning to end: held-out evaluation. Each `iter` starts anew.

    A lane that finds no document left holds rows that are not scored. `segments` ends the reading early, for the short
    evaluations of a training run; rank r of `world` processes reads documents r, r + world, …
    """

    def __init__(
        self,
        documents: Documents,
        *,
        batch_size: int,
        segment_length: int,
        segments: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(batch_size=batch_size, segment_length=segment_length, rank=rank, world=world)
        self.documents, self.segments = documents, segments

    def __iter__(self) -> Iterator[Segment]:
        waiting = deque(range(self.rank, len(self.documents), self.world))
        readers = [_Reader() for _ in range(self.batch_size)]
        read = 0
        while self.segments is None or read < self.segments:
            tokens, targets, reset = self._blank()
            for row, reader in enumerate(readers):
                while not reader.holds(2) and waiting:
                    document = waiting.popleft()
                    reader.open(document, self.documents.chunks(document))
                if reader.holds(2):
                    reset[row] = reader.take(tokens[row], targets[row])
            if (targets == -100).all():
                return
            read += 1
            yield Segment(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(reset))

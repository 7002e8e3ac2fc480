"""Documents of a Hugging Face data set, streamed: nothing is downloaded ahead, one document a lane is in memory.

Documents come in the data set's own order; lanes mix as many of them as there are rows in a batch. Each is found again by
the position that `IterableDataset.state_dict` gave before it was read. A data set shuffled through a buffer has no such
position: there a document is found by its number in the epoch, which reads the epoch's earlier rows again.
"""

import copy
import os
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from memseq.errors import DataError, MissingExtraError
from memseq.tasks.tokenizers import Tokenizer

__all__ = ["TextStream", "load_stream"]

PIECE = 1 << 16  # bytes


class TextStream:
    """The rows of an `IterableDataset` as documents; obeys `training.lanes.DocumentStream`."""

    def __init__(self, dataset: Any, tokenizer: Tokenizer, *, field: str = "text", name: str = "the data set") -> None:
        self.dataset, self.tokenizer, self.field, self.name = dataset, tokenizer, field, name
        self._epoch, self._number = 0, 0
        self._rows: Iterator[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        return f"TextStream({self.name}, {self.tokenizer!r})"

    def shard(self, rank: int, world: int) -> "TextStream":
        """This process's part of the data set, one of `world`."""
        from datasets.distributed import split_dataset_by_node

        return TextStream(split_dataset_by_node(self.dataset, rank, world), self.tokenizer, field=self.field, name=self.name)

    def take(self) -> tuple[Any, Iterator[tuple[int, NDArray[Any]]]]:
        if self._rows is None:
            self._begin()
        place = self.state_dict()
        row = self._next()
        if row is None:
            if self._number == 0:
                raise DataError(f"{self.name} holds no documents; name another data set or split")
            self._epoch, self._number = self._epoch + 1, 0
            self._begin()
            place, row = self.state_dict(), self._next()
        self._number += 1
        return place, self._chunks(self._text(row), 0)

    def reopen(self, place: dict[str, Any], start: int) -> Iterator[tuple[int, NDArray[Any]]]:
        other = TextStream(self.dataset, self.tokenizer, field=self.field, name=self.name)
        other.load_state_dict(place)
        return self._chunks(self._text(other._next()), start)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "number": self._number, "dataset": copy.deepcopy(self.dataset.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._number = state["epoch"], state["number"]
        self.dataset.set_epoch(self._epoch)
        if _shuffled_in_a_buffer(self.dataset):
            self._rows = iter(self.dataset.skip(self._number))
        else:
            self.dataset.load_state_dict(copy.deepcopy(state["dataset"]))
            self._rows = iter(self.dataset)

    def _begin(self) -> None:
        self.dataset.set_epoch(self._epoch)
        self._rows = iter(self.dataset)

    def _next(self) -> dict[str, Any] | None:
        assert self._rows is not None
        try:
            return next(self._rows, None)
        except Exception as error:  # a data set raises what its storage raises
            raise DataError(f"{self.name} cannot be read on: {type(error).__name__}: {error}") from error

    def _text(self, row: dict[str, Any] | None) -> bytes:
        value = (row or {}).get(self.field)
        if not isinstance(value, str):
            raise DataError(f"{self.name} has a row without text under {self.field!r}: it holds {sorted(row or {})}; name another field")
        return value.encode("utf-8", errors="surrogatepass")

    def _chunks(self, text: bytes, start: int) -> Iterator[tuple[int, NDArray[Any]]]:
        while start < len(text):
            data = text[start : start + PIECE]
            ready = len(data) if start + len(data) == len(text) else self.tokenizer.border(data) or len(data)
            yield start, self.tokenizer.encode(data[:ready])
            start += ready


def _shuffled_in_a_buffer(dataset: Any) -> bool:
    """Whether rows pass through a shuffle buffer, whose content `state_dict` does not hold."""
    link = getattr(dataset, "_ex_iterable", None)
    while link is not None and "Buffer" not in type(link).__name__:
        link = getattr(link, "ex_iterable", None)
    return link is not None


def load_stream(place: str, tokenizer: Tokenizer, *, field: str = "text") -> TextStream:
    """Open `hf:NAME`, `hf:NAME:split` or `hf:FOLDER` (default split: train) as a stream.

    Raises `DataError` where there is no such data set or split, `MissingExtraError` without the `datasets` package.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", extra="data") from None
    name, _, split = place.removeprefix("hf:").partition(":")
    if not name:
        raise DataError("hf: names no data set; write hf:NAME or hf:NAME:split")
    try:
        stream = datasets.load_dataset(os.fspath(name), split=split or "train", streaming=True)
    except Exception as error:  # noqa: BLE001 (the hub, the file system and the parser each raise their own)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the data set {name} (split {split or 'train'}) cannot be opened: {reason}; check its name, or the network"
        ) from None
    return TextStream(stream, tokenizer, field=field, name=name)

"""Text to learn from: files, folders, .gz, .jsonl, standard input, the standard library's source, Hugging Face data sets.

`open_text(places, tokenizer)` names them all; what it returns is read a chunk at a time, so that neither a file nor a
line is ever whole in memory (a JSON document is: JSON has no other way). A plain file is one document, and so is a line of
.jsonl. What cannot be read from several places at once (.gz, standard input) is copied to a temporary file first, which
has no name and vanishes with the process.

    open_text(["stdlib"])                      the source of Python's standard library, on every machine that has Python
    open_text(["notes.txt", "books/"])         a folder is searched for text, in alphabetical order; hidden and binary files are left out
    open_text(["corpus.jsonl.gz"])             one JSON object a line, its "text" field
    open_text(["-"])                           standard input
    open_text(["hf:NAME", "hf:NAME:split"])    a data set of the Hugging Face hub, or of a folder, streamed
"""

import csv
import gzip
import json
import os
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memseq.errors import DataError
from memseq.tasks.tokenizers import Bytes, Tokenizer

__all__ = ["Text", "books", "open_text", "stdlib"]

CHUNK = 1 << 16  # bytes read at once
LONGEST_LINE = 1 << 28  # bytes of one JSON document, which has to be parsed whole
SNIFF = 1 << 13  # bytes that tell text from other files: those hold a zero byte early


@dataclass(frozen=True, kw_only=True)
class Source:
    """A run of bytes that can be read from anywhere: a file, or a part of the temporary file."""

    name: str  # as the user knows it
    path: str | None  # None: in the spool
    base: int = 0
    size: int
    field: str | None = None  # the JSON field that holds the text; None: the bytes are the text

    def read(self, spool: "Spool", begin: int, length: int) -> bytes:
        if self.path is None:
            return os.pread(spool.file.fileno(), length, self.base + begin)
        try:
            with Path(self.path).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), length, begin)
        except OSError as error:
            raise DataError(_unreadable(self.name, error)) from None


class Spool:
    """One nameless temporary file for everything that cannot be read from several places at once."""

    @cached_property
    def file(self) -> Any:
        return tempfile.TemporaryFile(prefix="memseq-")

    def copy(self, name: str, stream: Any) -> Source:
        self.file.seek(0, os.SEEK_END)
        base = self.file.tell()
        try:
            while data := stream.read(1 << 20):
                self.file.write(data)
            self.file.flush()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{name} is not a whole gzip file ({error}); it may be truncated, or not gzip at all") from None
        except OSError as error:
            raise DataError(
                f"{name} could not be unpacked to {tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a larger disk"
            ) from None
        return Source(name=name, path=None, base=base, size=self.file.tell() - base)


class Text:
    """Documents of text: numbered, opened anywhere, cut in parts, split into training and held-out; obeys `training.lanes.Documents`.

    A document is a row of `where`: the number of its source, its first byte there and the byte after its last.
    """

    def __init__(self, sources: Sequence[Source], where: NDArray[np.int64], tokenizer: Tokenizer, spool: Spool) -> None:
        self.sources, self.where, self.tokenizer, self._spool = list(sources), where, tokenizer, spool

    def __len__(self) -> int:
        return len(self.where)

    def __repr__(self) -> str:
        return f"Text({len(self)} documents, {self.size} bytes, {self.tokenizer!r})"

    @property
    def size(self) -> int:
        """Bytes of text on disk (of a .jsonl, with its JSON)."""
        return int((self.where[:, 2] - self.where[:, 1]).sum())

    def name(self, document: int) -> str:
        source, begin, end = self.where[document]
        name, size = self.sources[source].name, self.sources[source].size
        return name if (begin, end) == (0, size) else f"{name}[{begin}:{end}]"

    def pieces(self, document: int) -> Iterator[bytes]:
        """The document's bytes, a chunk at a time."""
        read, size = self._open(document)
        at = 0
        while at < size and (data := read(at)):
            yield data
            at += len(data)

    def chunks(self, document: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first byte, token ids) of each chunk from byte `start` on: 0, or a first byte that this method yielded before."""
        read, size = self._open(document)
        while start < size and (data := read(start)):
            last = start + len(data) >= size
            ready = len(data) if last else self.tokenizer.border(data) or len(data)
            try:
                ids = self.tokenizer.encode(data[:ready])
            except DataError as error:
                raise DataError(f"{self.name(document)}, in the part from byte {start} on: {error}") from None
            yield start, ids
            start += ready

    def _open(self, document: int) -> tuple[Callable[[int], bytes], int]:
        """(what reads one chunk at a byte of the document, its size in bytes); a file is open only while it is read."""
        number, begin, end = (int(n) for n in self.where[document])
        source = self.sources[number]
        if source.field is not None:
            text = self._parse(source, begin, end)
            return lambda at: text[at : at + CHUNK], len(text)
        return lambda at: source.read(self._spool, begin + at, min(CHUNK, end - begin - at)), end - begin

    def at_least(self, count: int) -> "Text":
        """The same text in `count` documents or more: the longest are halved, at a line's end where one is near."""
        if len(self) >= count:
            return self
        rows = [tuple(int(n) for n in row) for row in self.where]
        while len(rows) < count:
            cuttable = [i for i, (source, begin, end) in enumerate(rows) if self.sources[source].field is None and end - begin >= 4]
            if not cuttable:
                raise DataError(
                    f"{len(self)} documents of {self.size} bytes are too little text for {count} lanes; use a smaller batch or more text"
                )
            longest = max(cuttable, key=lambda i: rows[i][2] - rows[i][1])
            source, begin, end = rows[longest]
            middle = self._line_after(source, (begin + end) // 2, end)
            rows[longest : longest + 1] = [(source, begin, middle), (source, middle, end)]
        return Text(self.sources, np.array(rows, dtype=np.int64), self.tokenizer, self._spool)

    def split(self, held_out: float = 0.05) -> tuple["Text", "Text"]:
        """(training, held-out) text, the same on every machine.

        From 20 documents on, whole documents are held out, drawn by their number and source; of fewer, the last part of each.
        """
        if not 0.0 < held_out < 1.0:
            raise DataError(f"held_out={held_out} must lie between 0 and 1; 0.05 keeps five hundredths of the text aside")
        if len(self) >= 20:
            named = np.array([zlib.crc32(source.name.encode()) for source in self.sources], dtype=np.uint64)
            order = np.argsort(_mix(named[self.where[:, 0]] << np.uint64(32) | np.arange(len(self), dtype=np.uint64)), kind="stable")
            aside = np.zeros(len(self), dtype=bool)
            aside[order[: max(1, round(held_out * len(self)))]] = True
            return self._with(self.where[~aside]), self._with(self.where[aside])
        train, valid = [], []
        for source, begin, end in self.where.tolist():
            if self.sources[source].field is not None:
                raise DataError(f"{len(self)} JSON documents are too few to hold any out; give 20 or more, or name a held-out file")
            middle = self._line_after(source, end - max(2, round(held_out * (end - begin))), end)
            train.append((source, begin, middle))
            valid.append((source, middle, end))
        kept = [[row for row in rows if row[2] - row[1] >= 2] for rows in (train, valid)]
        if not all(kept):
            raise DataError(f"{self.size} bytes of text are too little to hold a part out; give more text, or name a held-out file")
        return self._with(np.array(kept[0], dtype=np.int64)), self._with(np.array(kept[1], dtype=np.int64))

    def _with(self, where: NDArray[np.int64]) -> "Text":
        return Text(self.sources, where, self.tokenizer, self._spool)

    def with_tokenizer(self, tokenizer: Tokenizer) -> "Text":
        """The same documents through another tokenizer, such as one that was just trained on `all_bytes()`."""
        return Text(self.sources, self.where, tokenizer, self._spool)

    def all_bytes(self) -> Iterator[bytes]:
        """Every document's bytes in order, a chunk at a time: what `BPE.train` reads."""
        for document in range(len(self)):
            yield from self.pieces(document)
            yield b"\n"

    def _line_after(self, source: int, at: int, end: int) -> int:
        """A place to cut at or after `at`: after a line, else before a character."""
        data = self.sources[source].read(self._spool, at, min(1 << 12, end - at))
        line = data.find(b"\n") + 1
        if 0 < line < end - at:
            return at + line
        return at + next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)

    def _parse(self, source: Source, begin: int, end: int) -> bytes:
        if end - begin > LONGEST_LINE:
            raise DataError(
                f"{source.name} holds a line of {end - begin} bytes; a JSON document is parsed whole, so put long ones into plain files"
            )
        return _json_text(source.read(self._spool, begin, end - begin), source.name, begin, source.field or "text")


def open_text(places: Sequence[str | os.PathLike[str]], tokenizer: Tokenizer | None = None, *, field: str = "text") -> Any:
    """The text of `places` (see the module's docstring) as one `Text`, or as a `TextStream` for `hf:` names.

    Raises `DataError` where a place is missing, unreadable, empty or not what it claims to be.
    """
    tokenizer = tokenizer or Bytes()
    names = [os.fspath(place) for place in places]
    if not names:
        raise DataError("no text was named; give a file, a folder, - for standard input, or stdlib")
    if any(name.startswith("hf:") for name in names):
        from memseq.tasks.datasets import load_stream

        if len(names) > 1:
            raise DataError(f"a data set of the hub is streamed on its own; {', '.join(names)} were named together")
        return load_stream(names[0], tokenizer, field=field)
    spool = Spool()
    sources: list[Source] = []
    for name in names:
        if name == "-":
            sources.append(_named(spool.copy("standard input", sys.stdin.buffer)))
        elif name == "stdlib":
            sources += _standard_library()
        elif Path(name).is_dir():
            sources += _folder(name, spool, field)
        else:
            sources.append(_named(_file(name, spool, field)))
    rows = [row for number, source in enumerate(sources) for row in _documents(number, source, spool)]
    return Text(sources, np.concatenate(rows), tokenizer, spool)


def stdlib(tokenizer: Tokenizer | None = None) -> tuple[Text, Text]:
    """(training, held-out) source of Python's standard library, split by file: about 9 MB on Python 3.11."""
    return open_text(["stdlib"], tokenizer).split(0.05)


def books(folder: str | os.PathLike[str], split: str, tokenizer: Tokenizer | None = None) -> Text:
    """The books of one split ("train", "valid" or "test") of a folder whose `books.csv` names a `file` and a `split` a row."""
    table = Path(folder) / "books.csv"
    if not table.is_file():
        raise DataError(f"there is no {table}; name a folder of books with a books.csv of columns file and split")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = [Path(folder) / row["file"] for row in rows if row.get("split") == split]
    if not files:
        raise DataError(f"{table} names no book of split {split!r}; it holds {sorted({row.get('split', '') for row in rows})}")
    return open_text(sorted(files), tokenizer)


def _standard_library() -> list[Source]:
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "__pycache__"}
    files = []
    for directory, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if folder not in left_out]
        files += [Path(directory) / name for name in names if name.endswith(".py")]
    sources = [Source(name=p.relative_to(root).as_posix(), path=str(p), size=p.stat().st_size) for p in sorted(files) if p.is_file()]
    sources = [source for source in sources if source.size >= 2]
    if not sources:
        raise DataError(f"this Python has no source of its standard library at {root}; name a file or a folder instead of stdlib")
    return sources


def _folder(name: str, spool: Spool, field: str) -> list[Source]:
    sources, left_out = [], 0
    for directory, folders, files in os.walk(name):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(f for f in files if not f.startswith(".")):
            path = Path(directory) / file
            source = _file(str(path), spool, field) if path.is_file() else None
            if source is None or source.size < 2 or b"\0" in source.read(spool, 0, SNIFF):
                left_out += 1
            else:
                sources.append(source)
    if not sources:
        raise DataError(f"the folder {name} holds no text ({left_out} files are empty or binary); name a file, or another folder")
    return sources


def _file(name: str, spool: Spool, field: str) -> Source:
    if not Path(name).exists():
        raise DataError(f"there is no file or folder {name}; name one that exists, - for standard input, or stdlib")
    if not Path(name).is_file():
        raise DataError(f"{name} is neither a file nor a folder; to read a pipe, use - and standard input")
    try:
        with Path(name).open("rb") as file:
            file.read(1)
        if name.endswith(".gz"):
            with gzip.open(name, "rb") as unpacked:
                source = spool.copy(name, unpacked)
        else:
            source = Source(name=name, path=str(Path(name).resolve()), size=Path(name).stat().st_size)
    except OSError as error:
        raise DataError(_unreadable(name, error)) from None
    is_json = name.removesuffix(".gz").endswith(".jsonl")
    return Source(name=name, path=source.path, base=source.base, size=source.size, field=field) if is_json else source


def _named(source: Source) -> Source:
    """A source that the user named himself: too little in it is an error, where a folder would leave it out."""
    if source.size == 0:
        raise DataError(f"{source.name} is empty (0 bytes); give text to learn from")
    if source.size == 1:
        raise DataError(f"{source.name} holds a single byte, and nothing follows it that could be predicted; give 2 bytes or more")
    return source


def _documents(number: int, source: Source, spool: Spool) -> list[NDArray[np.int64]]:
    """Rows (source, first byte, byte after the last): one for a plain file, one for each line of JSON."""
    if source.field is None:
        return [np.array([[number, 0, source.size]], dtype=np.int64)]
    ends, at = [np.array([-1])], 0
    while data := source.read(spool, at, 1 << 20):
        data = data[: source.size - at]
        ends.append(at + np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == 10))
        at += len(data)
        if at >= source.size:
            break
    line_ends = np.concatenate([*ends, [source.size]])
    begins, stops = line_ends[:-1] + 1, line_ends[1:]
    kept = stops - begins >= 2  # a blank line is no document
    begins, stops = begins[kept], stops[kept]
    if not len(begins):
        raise DataError(f"{source.name} holds no JSON lines; give one JSON object a line with its text under {source.field!r}")
    _json_text(source.read(spool, int(begins[0]), int(min(stops[0] - begins[0], LONGEST_LINE))), source.name, int(begins[0]), source.field)
    return [np.stack([np.full(len(begins), number), begins, stops], axis=1).astype(np.int64)]


def _json_text(line: bytes, name: str, at: int, field: str) -> bytes:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{name} has a line at byte {at} that is not JSON ({error}); give one JSON object a line") from None
    if not isinstance(value, dict) or not isinstance(value.get(field), str):
        found = f"the fields {sorted(value)}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise DataError(f"{name} has a line at byte {at} without text under {field!r}: it holds {found}; rename the field, or name it")
    return value[field].encode("utf-8", errors="surrogatepass")


def _unreadable(name: str, error: OSError) -> str:
    return f"{name} cannot be read ({error.strerror or error}); check its permissions, or name another file"


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: numbers that tell nothing of the order they came in."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

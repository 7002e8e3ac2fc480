"""Series of numbers from files: Japanese Vowels (whose voice is this?) and ETTh1 (what comes next?).

Source: Kudo et al. 1999, as packed by the UEA archive (`.ts`); Zhou et al., Informer (arXiv:2012.07436), whose splits are kept.

    vowels = japanese_vowels("data/japanesevowels")     270 train and 370 test utterances, 7 to 29 steps of 12 numbers, 9 speakers
    ett = etth1("data/ett")                             17,420 hours of 7 numbers: train 12, valid 4 and test 4 months

Files may be packed by gzip or not. Nothing is filled up: utterances keep their own lengths.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from memseq.errors import ConfigError, DataError

__all__ = ["ETT_COLUMNS", "Forecasts", "LabelledSeries", "etth1", "japanese_vowels", "read_ett", "read_ts"]

ETT_COLUMNS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
MONTH = 30 * 24  # hours, as Informer counts them


@dataclass(frozen=True)
class LabelledSeries:
    """Series of different lengths, each with a class."""

    series: tuple[Float[Tensor, "_ C"], ...]  # each of its own length
    labels: Int64[Tensor, "n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.series)

    def batch(self, rows: Int64[Tensor, "B"]) -> "RaggedBatch":
        """Some of them side by side. What lies behind a row's end is zero, and a causal reader asked at the end has not seen it."""
        chosen = [self.series[i] for i in rows.tolist()]
        return RaggedBatch(
            torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True), torch.tensor([len(s) for s in chosen]), self.labels[rows]
        )

    def normalised(self, like: "LabelledSeries") -> "LabelledSeries":
        """Every channel less the mean and over the deviation that it has in `like`, over all its steps."""
        every = torch.cat(like.series)
        mean, std = every.mean(0), every.std(0).clamp(min=1e-8)
        return LabelledSeries(tuple((s - mean) / std for s in self.series), self.labels, self.classes)


class RaggedBatch(NamedTuple):
    inputs: Float[Tensor, "B T C"]
    lengths: Int64[Tensor, "B"]
    labels: Int64[Tensor, "B"]


class Forecasts(NamedTuple):
    """A long series in three parts, normalised by the first. The later parts begin with the context that precedes them."""

    train: Float[Tensor, "train C"]
    valid: Float[Tensor, "valid C"]
    test: Float[Tensor, "test C"]

    @staticmethod
    def windows(part: Float[Tensor, "T C"], length: int, *, every: int = 1) -> Float[Tensor, "n L C"]:
        """All windows of `length` steps of a part, or each `every`-th."""
        if not 1 <= length <= len(part):
            raise ConfigError(f"a window of length={length} does not fit a part of {len(part)} steps")
        return part.unfold(0, length, every).mT


def japanese_vowels(folder: str | Path) -> tuple[LabelledSeries, LabelledSeries]:
    """The train and the test utterances of the folder that holds `JapaneseVowels_TRAIN.ts` and `_TEST.ts`, packed or not."""
    train, test = (read_ts(_found(Path(folder), f"JapaneseVowels_{part}.ts")) for part in ("TRAIN", "TEST"))
    if train.classes != test.classes:
        raise DataError(f"the train and test files of {folder} name different classes: {train.classes} and {test.classes}")
    return train, test


def etth1(folder: str | Path, *, context: int = 96) -> Forecasts:
    """The splits of Informer: hours 0 to 12 months, to 16 and to 20 (of 30 days), channels normalised by the first."""
    series = read_ett(_found(Path(folder), "ETTh1.csv"))
    borders = [0, 12 * MONTH, 16 * MONTH, 20 * MONTH]
    if len(series) < borders[-1]:
        raise DataError(f"ETTh1.csv in {folder} has {len(series)} hours and the splits need {borders[-1]}; the file may be truncated")
    if not 0 <= context <= borders[1]:
        raise ConfigError(f"context={context} must lie in 0 to {borders[1]} hours")
    train = series[: borders[1]]
    series = (series - train.mean(0)) / train.std(0, correction=0)
    return Forecasts(series[: borders[1]], *(series[a - context : b] for a, b in pairwise(borders[1:])))


def read_ts(path: str | Path) -> LabelledSeries:
    """A classification file of the UEA archive: channels divided by colons, steps by commas, the class last.

    Raises `DataError` with the line where the file is not what it claims to be.
    """
    series, labels, header = [], [], {}
    for number, line in _lines(Path(path)):
        if line.startswith("#") or not line:
            continue
        if line.startswith("@"):
            name, _, value = line[1:].partition(" ")
            header[name.lower()] = value.split()
        elif "data" not in header:
            raise DataError(f"{path}, line {number}: values before @data; this is not a .ts file")
        else:
            *channels, label = line.split(":")
            series.append(_series(channels, f"{path}, line {number}"))
            labels.append(label.strip())
    marks = header.get("classlabel", [])
    if marks[:1] != ["true"]:
        raise DataError(f"{path} names no classes (a line '@classLabel true ...'); only classification files are read")
    if not series:
        raise DataError(f"{path} holds no series; it may be truncated")
    classes = tuple(marks[1:])
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        raise DataError(f"{path} has series of class {unknown[0]!r}, which its header does not name: {', '.join(classes)}")
    widths = {s.shape[1] for s in series}
    if len(widths) > 1:
        raise DataError(f"{path} has series of {sorted(widths)} channels; all must have as many")
    return LabelledSeries(tuple(series), torch.tensor([classes.index(label) for label in labels]), classes)


def read_ett(path: str | Path) -> Float[Tensor, "T C"]:
    """The seven columns of an ETT file, in the order of the file; the date is checked to be there and left out."""
    lines = _lines(Path(path))
    columns = next(lines, (0, ""))[1].split(",")
    if columns != ["date", *ETT_COLUMNS]:
        raise DataError(f"{path} has the columns {columns} and an ETT file has date, {', '.join(ETT_COLUMNS)}")
    rows = []
    for number, line in lines:
        if line:
            values = line.split(",")[1:]
            if len(values) != len(ETT_COLUMNS):
                raise DataError(f"{path}, line {number}: {len(values)} values instead of {len(ETT_COLUMNS)}; the file may be truncated")
            rows.append(_numbers(values, f"{path}, line {number}"))
    if not rows:
        raise DataError(f"{path} holds no rows; it may be truncated")
    return torch.tensor(rows)


def _series(channels: list[str], place: str) -> Tensor:
    values = [_numbers(channel.split(","), place) for channel in channels]
    if not values or len({len(v) for v in values}) > 1:
        raise DataError(f"{place}: channels of {[len(v) for v in values]} steps; all channels of a series must have as many")
    return torch.tensor(values).T.contiguous()


def _numbers(texts: list[str], place: str) -> list[float]:
    try:
        values = [float(text) for text in texts]
    except ValueError:
        bad = next(text for text in texts if not _is_number(text))
        raise DataError(f"{place}: {bad!r} is no number") from None
    if not all(abs(value) < float("inf") for value in values):
        raise DataError(f"{place}: a value is missing or not finite; fill it before reading")
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _found(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder} holds no {name} or {name}.gz; give the folder where the file lies")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, packed or not."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield number, line.strip()
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it may be truncated, or no gzip file") from None

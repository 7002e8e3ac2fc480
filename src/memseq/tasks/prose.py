"""Plain sentences to hide something in: of a text file, or of the documentation that comes with Python."""

import random
import re
from functools import cache
from pathlib import Path

import torch

from memseq.errors import InputError

__all__ = ["dice", "fit", "sentences_of", "split_sentences"]

PROSE = re.compile(r"[A-Z][A-Za-z ,;:'\"()-]+[.!?]")  # neither headings nor code


def dice(generator: torch.Generator) -> random.Random:
    """Chance for texts, from that of tensors: a draw costs a hundredth of a tensor's."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def split_sentences(text: str) -> list[str]:
    """A text cut after its full stops, exclamation and question marks."""
    return [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence.strip()]


@cache
def sentences_of(file: str | None = None) -> tuple[str, ...]:
    """The plain sentences of a text file, in ASCII so that characters are bytes; of Python's documentation where none is given."""
    if file is None:
        from pydoc_data.topics import topics

        text = " ".join(topics[name] for name in sorted(topics))
    else:
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"the text {file} cannot be read: {error.strerror}; give the path of a text file") from None
    plain = " ".join(text.encode("ascii", "ignore").decode().split())
    sentences = tuple(sentence for sentence in split_sentences(plain) if PROSE.fullmatch(sentence))
    if not sentences:
        raise InputError(f"the text {file} has no plain sentence; give a text file")
    return sentences


def fit(pool: tuple[str, ...], room: int, chance: random.Random | None) -> list[str]:
    """Sentences of `pool`, one after another, that fill exactly `room` characters, each with one space; the last is cut.

    From a sentence drawn at random on, or from the first where nothing is drawn. A last character that no sentence fits is a full stop.
    """
    start = 0 if chance is None else chance.randrange(len(pool))
    kept: list[str] = []
    while room > 1:
        kept.append(pool[(start + len(kept)) % len(pool)][: room - 1])
        room -= len(kept[-1]) + 1
    if room and kept:
        kept[-1] += "."
    return kept or [""] * room

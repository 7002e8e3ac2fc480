"""Text into a stream and out of it: bytes for the tokenizer, whole characters for the reader, texts that end a generation."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memseq.errors import ConfigError, InputError
from memseq.streams.reading import Tokenizer

__all__ = ["Stops", "TextOut", "as_bytes"]

PIECE = 1 << 16  # bytes that a tokenizer is given at once


def as_bytes(texts: Iterable[Any]) -> Iterator[bytes]:
    """Texts and bytes as pieces of UTF-8, of bounded size."""
    for text in texts:
        if isinstance(text, str):
            for start in range(0, len(text), PIECE):
                try:
                    yield text[start : start + PIECE].encode()
                except UnicodeEncodeError as error:
                    place = start + error.start
                    raise InputError(f"the text holds half of a character (a lone surrogate) at {place}; read it as bytes") from None
        elif isinstance(text, bytes | bytearray | memoryview):
            yield from (bytes(text[start : start + PIECE]) for start in range(0, len(text), PIECE))
        else:
            raise InputError(f"an iterable of text goes on as text, got {type(text).__name__} in it; read token ids by themselves")


class TextOut:
    """Takes tokens one by one and hands out the text they add: together, what all of them decode to.

    A token may hold a part of a character: its bytes wait for the rest. A vocabulary may show a token otherwise at the
    start of a text (without its leading space): a token is decoded with the one before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.before: list[int] = []
        self.characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        shown = self.tokenizer.decode_bytes(self.before)
        new = self.tokenizer.decode_bytes([*self.before, token])[len(shown) :]
        self.before = [token]
        return self.characters.decode(new)

    def rest(self) -> str:
        """What was still held back: a character that never became whole."""
        return self.characters.decode(b"", final=True)


class Stops:
    """What ends a generation: token ids, or texts, which may run over several tokens."""

    def __init__(self, stop: str | int | Sequence[str | int], tokenizer: Tokenizer | None) -> None:
        stops: list[Any] = [stop] if isinstance(stop, str | int) else list(stop)
        wrong = [s for s in stops if not isinstance(s, str | int) or isinstance(s, bool) or s == ""]
        if wrong:
            raise ConfigError(f"stop holds token ids and non-empty texts, got {wrong[0]!r}")
        self.ids = {s for s in stops if isinstance(s, int)}
        self.texts = [s for s in stops if isinstance(s, str)]
        if self.texts and tokenizer is None:
            raise InputError(f"stop={self.texts[0]!r} is a text and this session has no tokenizer; give it one, or stop at token ids")
        self.out = TextOut(tokenizer) if self.texts and tokenizer is not None else None
        self.tail = ""  # the end of what was generated, as long as a stop may be

    def met(self, token: int) -> bool:
        """Whether the generation ends after this token."""
        if token in self.ids:
            return True
        if self.out is None:
            return False
        seen = self.tail + self.out.take(token)
        if any(text in seen for text in self.texts):
            return True
        self.tail = seen[-max(len(text) for text in self.texts) :]
        return False

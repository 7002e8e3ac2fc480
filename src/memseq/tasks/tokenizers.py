"""Text as token ids: raw bytes, or byte-pair encoding.

Both speak the same few words, so that nothing downstream asks which one it holds:

    border(data)            how many leading bytes of `data` can be encoded without seeing what follows them
    encode(data) -> ids     whole pieces, cut at borders
    encode_chunks(pieces)   any iterator of bytes -> iterator of ids, in bounded memory: a document is never whole in memory
    decode(ids) -> text     and decode_bytes(ids) -> bytes
    save(directory)         tokenizer.json and tokenizer_config.json, as `AutoTokenizer.from_pretrained(directory)` reads them
    fingerprint             sixteen hex digits that name the vocabulary

There are no special tokens: a border between documents is a fresh state, not a token.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, SupportsInt, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memseq.errors import ConfigError, DataError, MissingExtraError

__all__ = ["BPE", "Bytes", "Tokenizer", "load_tokenizer"]

LONGEST_PIECE = 1 << 16  # bytes; text without a single white space is cut here, so that memory stays bounded

Ids = NDArray[Any]  # one axis of token ids, any integer dtype


@runtime_checkable
class Tokenizer(Protocol):
    """What text passes through on its way to a model; see the module's docstring."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """How many bytes of text each token stands for, [V]: what turns bits per token into bits per byte."""
        ...

    def border(self, data: bytes) -> int: ...
    def encode(self, data: bytes) -> Ids: ...
    def encode_chunks(self, pieces: Iterable[bytes]) -> Iterator[Ids]: ...
    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes: ...
    def decode(self, ids: Iterable[SupportsInt]) -> str: ...
    def save(self, directory: str | os.PathLike[str]) -> Path: ...


class _Common:
    """What follows from `border`, `encode`, `decode_bytes` and the JSON of the vocabulary."""

    def encode_chunks(self: Any, pieces: Iterable[bytes]) -> Iterator[Ids]:
        held = b""
        for piece in pieces:
            held += piece
            if ready := self.border(held):
                yield self.encode(held[:ready])
                held = held[ready:]
        if held:
            yield self.encode(held)

    def decode(self: Any, ids: Iterable[SupportsInt]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self: Any, directory: str | os.PathLike[str]) -> Path:
        """Write the two files that make `directory` a tokenizer for transformers too; returns the path of tokenizer.json."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, "model_max_length": 10**30}
        for name, text in (("tokenizer_config.json", json.dumps(settings, indent=2)), ("tokenizer.json", self._json)):
            beside = directory / f".{name}.{os.getpid()}.part"
            beside.write_text(text + "\n", encoding="utf-8")
            os.replace(beside, directory / name)
        return directory / "tokenizer.json"

    @property
    def fingerprint(self: Any) -> str:
        return sha256(self._json.encode()).hexdigest()[:16]


class Bytes(_Common):
    """Every byte is a token and its value is its id: any language, any file, no vocabulary to learn.

    >>> Bytes().encode(b"caf\\xc3\\xa9").tolist()
    [99, 97, 102, 195, 169]
    """

    vocab_size = 256

    def __repr__(self) -> str:
        return "Bytes()"

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        return np.ones(256, dtype=np.int64)

    def border(self, data: bytes) -> int:
        return len(data)

    def encode(self, data: bytes) -> Ids:
        return np.frombuffer(data, dtype=np.uint8)

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        return bytes(int(i) for i in ids)

    @cached_property
    def _json(self) -> str:
        vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        model: dict[str, Any] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
        }
        model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": []}
        whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
        whole |= {"pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}
        return json.dumps(whole, ensure_ascii=False, indent=2)


class BPE(_Common):
    """Byte-pair encoding by the `tokenizers` package: trained here on text, or loaded from a tokenizer.json.

    A document is encoded piece by piece. Pieces end where the byte-level pre-tokeniser splits anyway (before a single
    space or after a single line end, between characters that are no white space), so that for the tokenisers trained
    here the ids are those of the whole document; a text without such a place is cut between two characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._json = tokenizer.to_str(pretty=True)

    def __repr__(self) -> str:
        return f"BPE(vocab_size={self.vocab_size})"

    @classmethod
    def train(cls, text: Iterable[bytes], vocab_size: int) -> "BPE":
        """Learn a byte-level vocabulary from an iterator of pieces of text, in bounded memory."""
        tokenizers = _tokenizers()
        if vocab_size < 256:
            raise ConfigError(f"vocab_size={vocab_size} is too small: a byte-level vocabulary begins with the 256 bytes; use 257 or more")
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=byte_symbols(), special_tokens=[], show_progress=False, min_frequency=2
        )
        tokenizer.train_from_iterator(_texts(text), trainer=trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "BPE":
        """Read a tokenizer.json, or the one in a directory."""
        tokenizers = _tokenizers()
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"there is no tokenizer at {file}; give a tokenizer.json, or learn one with --tokenizer train")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # noqa: BLE001 (the package raises a bare Exception)
            raise DataError(f"{file} is not a tokenizer of the tokenizers package ({error}); give a tokenizer.json") from None

    @cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def token_bytes(self) -> NDArray[np.int64]:
        return np.array([len(self.decode_bytes([i])) for i in range(self.vocab_size)], dtype=np.int64)

    def border(self, data: bytes) -> int:
        text = _without_cut_character(data).decode("utf-8", errors="surrogateescape")
        begin = max(0, len(text) - 4096)
        end = max((match.end() for match in _SPLITS.finditer(text, begin)), default=0)
        if end == 0:  # no place to split: wait for more, up to a size that is worth a token cut in two
            end = len(text) if len(data) >= LONGEST_PIECE else 0
        return len(text[:end].encode("utf-8", errors="surrogateescape"))

    def encode(self, data: bytes) -> Ids:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = data[error.start]
            raise DataError(
                f"the text is not UTF-8: byte 0x{bad:02x} at offset {error.start};"
                " train on bytes (--tokenizer bytes) or convert the text to UTF-8"
            ) from None
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode_bytes(self, ids: Iterable[SupportsInt]) -> bytes:
        """The bytes of byte-level tokens, also where a character is cut in two; other vocabularies decode as text."""
        ids = [int(i) for i in ids]
        if not self._byte_level:
            return self._tokenizer.decode(ids, skip_special_tokens=False).encode()
        return b"".join(self._piece(i) for i in ids)

    def _piece(self, token: int) -> bytes:
        symbols = self._tokenizer.id_to_token(token) or ""
        if token in self._added:
            return symbols.encode()
        return bytes(_BYTE_OF[s] for s in symbols)

    @cached_property
    def _byte_level(self) -> bool:
        return '"ByteLevel"' in json.dumps(json.loads(self._json)["decoder"])

    @cached_property
    def _added(self) -> set[int]:
        return {token["id"] for token in json.loads(self._json)["added_tokens"]}


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer saved in a directory: `Bytes` where it is the bytes, else `BPE`."""
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file() and file.read_bytes().strip() == Bytes()._json.encode():
        return Bytes()
    return BPE.load(path)


def byte_symbols() -> Sequence[str]:
    """The printable character that stands for each byte in a byte-level vocabulary, in the order of the bytes.

    Bytes that print stand for themselves; the others take the characters from 256 on, in order.
    """
    prints = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in prints else chr(next(others)) for byte in range(256)]


_BYTE_OF = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
_SPLITS = re.compile(r"(?<=\S)\n(?=\S)|\S(?= \S)")


def _without_cut_character(data: bytes) -> bytes:
    """`data` without a UTF-8 character whose last bytes are still to come."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < length else data
        if byte < 0x80:
            break
    return data


def _texts(pieces: Iterable[bytes]) -> Iterator[str]:
    """Lines of text for the trainer, which counts words: a line is never cut in the middle of a word."""
    held = b""
    for piece in pieces:
        held += piece
        end = held.rfind(b"\n") + 1 or held.rfind(b" ")
        if end > 0 or len(held) > 1 << 20:
            end = end if end > 0 else len(_without_cut_character(held))
            yield held[:end].decode("utf-8", errors="ignore")
            held = held[end:]
    if held:
        yield held.decode("utf-8", errors="ignore")


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError("tokenizers", extra="hf") from None
    return tokenizers

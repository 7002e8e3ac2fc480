"""The tokenizer of a llama2.c model: sentencepiece's byte-pair encoding in one small file.

Source of the format: github.com/karpathy/llama2.c, `tokenizer.py`: int32 longest piece, then for each id float32 score, int32 length,
bytes. Of two neighbours whose join is a piece, the pair of the highest score is joined first; what no piece covers is spelled in bytes
`<0xNN>`.

A word's piece holds the space before it, so a text is best begun with a space, which sentencepiece would add.
"""

import os
import re
import struct
from pathlib import Path

from memseq.errors import DataError, MissingExtraError
from memseq.tasks.tokenizers import BPE

__all__ = ["read_llama2c_tokenizer"]

SPACE, UNKNOWN = "\u2581", "<unk>"


def read_llama2c_tokenizer(path: str | os.PathLike[str]) -> BPE:
    """The tokenizer in a `tok*.bin`; ids 1 and 2 (begin, end) are never made of text. Raises `DataError` where the file is none."""
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError("tokenizers", extra="hf") from None
    pieces = _pieces(Path(path))
    vocab = {piece: i for i, (piece, _) in enumerate(pieces)}
    ranked = sorted((-score, i, piece) for i, (piece, score) in enumerate(pieces) if len(piece) > 1 and not re.fullmatch(r"<.*>", piece))
    merges = [(p[:at], p[at:]) for _, _, p in ranked for at in range(1, len(p)) if p[:at] in vocab and p[at:] in vocab]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=merges, unk_token=UNKNOWN, byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
    parts = [tokenizers.decoders.Replace(SPACE, " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    tokenizer.decoder = tokenizers.decoders.Sequence(parts)
    return BPE(tokenizer)


def _pieces(path: Path) -> list[tuple[str, float]]:
    """Every piece with its score, in the order of ids."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"there is no tokenizer to read at {path} ({error.strerror}); give a tok*.bin of llama2.c") from None
    found, at = [], 4
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            if length < 0 or at + 8 + length > len(data):
                raise struct.error("a piece reaches past the end")
            found.append((data[at + 8 : at + 8 + length].decode("utf-8").replace(" ", SPACE), score))
            at += 8 + length
        if len(found) < 259:
            raise struct.error(f"{len(found)} pieces are fewer than the bytes and three marks")
    except (struct.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a tokenizer of llama2.c: {error}") from None
    names = [UNKNOWN, "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return [(name, score) for name, (_, score) in zip(names, found, strict=False)] + found[len(names) :]

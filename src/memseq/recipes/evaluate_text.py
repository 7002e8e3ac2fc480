"""What a trained model makes of a text: bits per byte by position, with its memory, with the memory cleared, and beside
compressors that learn nothing. The recipe behind `memseq eval`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memseq.errors import ConfigError
from memseq.pretrained import load_pretrained
from memseq.probes import Bin, Curve, bits_per_byte, shallow
from memseq.recipes.train_text import held_out
from memseq.tasks.text import Text, open_text
from memseq.tasks.tokenizers import Tokenizer, load_tokenizer

__all__ = ["curves", "evaluate_text", "first_tokens"]


def evaluate_text(
    checkpoint: str | Path,
    places: tuple[str, ...] = (),
    *,
    forget_every: int | None = None,
    max_tokens: int = 1 << 18,
    streams: int = 8,
    device: str = "cpu",
) -> dict[str, Any]:
    """Score the model of `checkpoint` on the text of `places` (default: what was held out when it was trained).

    `forget_every` is how many tokens the cleared memory lasts (default: the model's segment). At most `max_tokens` are read
    a curve, document by document, and the compressors see the same documents.
    """
    model, tokenizer = load_pretrained(checkpoint, device=device), load_tokenizer(checkpoint)
    text, named = (open_text(places), places) if places else held_out(checkpoint)
    if not isinstance(text, Text):
        raise ConfigError("a streamed data set has no end to evaluate to; name a file or a folder")
    every = forget_every or model.segment_length or 128
    documents = first_tokens(text.with_tokenizer(tokenizer), max_tokens)
    carried, cleared = curves(model, documents, tokenizer, every, streams=streams)
    return {
        "checkpoint": str(checkpoint),
        "text": list(named),
        "tokens": carried.tokens,
        "bytes": sum(b.bytes for b in carried.bins),
        "bits_per_byte": {
            "memory": carried.bits_per_byte,
            "memory cleared": cleared.bits_per_byte,
            **shallow(b"".join(tokenizer.decode_bytes(ids) for ids in documents)),
        },
        "forget_every": every,
        "state_bytes": carried.state_bytes,
        "tokens_per_second": carried.tokens_per_second,
        "by_position": [_row(a, b) for a, b in zip(carried.bins, cleared.bins, strict=True)],
    }


def first_tokens(text: Text, count: int) -> list[NDArray[Any]]:
    """The first `count` tokens of `text`, document by document; documents without a second token are left out."""
    found: list[NDArray[Any]] = []
    for number in range(len(text)):
        if count < 2:
            break
        held, chunks = 0, []
        for _, ids in text.chunks(number):
            chunks.append(ids)
            held += len(ids)
            if held >= count:
                break
        document = np.concatenate([np.empty(0, dtype=np.int64), *chunks])[:count]
        if len(document) >= 2:
            found.append(document)
            count -= len(document)
    return found


def curves(model: Any, documents: Sequence[NDArray[Any]], tokenizer: Tokenizer, every: int, *, streams: int = 8) -> tuple[Curve, Curve]:
    """(with the memory, with the memory cleared every `every` tokens), on the same tokens."""

    def read(forget_every: int | None) -> Curve:
        pieces = ([ids] for ids in documents)
        return bits_per_byte(model, pieces, token_bytes=tokenizer.token_bytes, forget_every=forget_every, streams=streams)

    return read(None), read(every)


def _row(carried: Bin, cleared: Bin) -> dict[str, Any]:
    return {
        "first": carried.first,
        "last": carried.last,
        "tokens": carried.tokens,
        "memory": carried.bits_per_byte,
        "memory cleared": cleared.bits_per_byte,
    }

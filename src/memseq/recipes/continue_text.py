"""Continue a text with a trained model, from a prompt, from standard input or from a saved stream: `memseq generate`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from memseq.pretrained import load_pretrained
from memseq.state import read_state
from memseq.streams import Session
from memseq.tasks.tokenizers import load_tokenizer

__all__ = ["continue_text"]

PIECE = 1 << 16  # bytes of standard input read at once


def continue_text(
    checkpoint: str | Path,
    prompt: str | None,
    n: int,
    *,
    state: str | Path | None = None,
    save_state: str | Path | None = None,
    device: str = "cpu",
    **sampling: Any,
) -> Iterator[str]:
    """Read `prompt` (`-` for standard input) after the stream saved in `state`, and yield the text that follows, as it comes.

    A prompt that is a text is yielded first. `sampling` is what `Session.tokens` takes. The stream is saved to
    `save_state` once all `n` tokens were taken.
    """
    model, tokenizer = load_pretrained(checkpoint, device=device), load_tokenizer(checkpoint)
    session = Session(model, tokenizer=tokenizer) if state is None else opened(state, model, tokenizer)
    if prompt == "-":
        session.read(np.asarray(ids, dtype=np.int64) for ids in tokenizer.encode_chunks(pieces(sys.stdin.buffer)))
    elif prompt:
        session.read(np.asarray(tokenizer.encode(prompt.encode("utf-8", errors="surrogateescape")), dtype=np.int64))
        yield prompt
    yield from session.stream(n, **sampling)
    if save_state is not None:
        session.save(save_state)


def opened(path: str | Path, model: Any, tokenizer: Any) -> Session:
    """The stream saved at `path`: a session, or a state alone, such as a training checkpoint's."""
    state, metadata = read_state(path, model)
    if "session" in metadata:
        return Session.load(path, model, tokenizer)
    return Session(model, state, tokenizer)


def pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while data := stream.read(PIECE):
        yield data

"""A stream at work: one model, what it remembers, and what it predicts next.

    session = Session(model, tokenizer=tokenizer)
    session.read(lines_without_end)           constant memory, whatever comes
    session.generate(200, temperature=0.8)    continues, and remembers what it said
    session.save("monday.safetensors")        Session.load continues bit for bit, on another day or machine

Kept: the state after `tokens_seen` tokens, and the logits after the last of them, so that a stream can be continued
from zero new tokens. Both are replaced, never written to: a fork shares them with its parent at no cost, and neither
can change what the other holds. Chance needs no state: the draw at a position depends on the seed and the position.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memseq.errors import ConfigError, InputError, StateError
from memseq.state import State, batch_size, read_state, save_state, state_bytes
from memseq.streams.reading import Tokenizer, as_tokens, fingerprint_weights, reading
from memseq.streams.sampling import Sampler, draw
from memseq.streams.text import Stops, TextOut, as_bytes

__all__ = ["Session"]


class _Moment(NamedTuple):
    """All that a stream is, at one place in it."""

    state: State
    logits: Float[Tensor, "1 V"] | None  # None: no token was read here, so nothing is predicted
    tokens_seen: int


class Session:
    """One endless stream. Not a module: it holds a model, and the model holds nothing of it.

    model        a language model; it reads without gradients and without dropout, and is left in the mode it was in
    state        what the stream remembers at the start, of one row; None for a stream that has read nothing
    tokenizer    text to token ids and back; without one, a session reads and generates token ids
    seed         decides every draw of `generate`, together with the position in the stream
    chunk_size   tokens read at once: speed and memory only
    undo_turns   how many turns `undo` can take back; each keeps one state
    """

    def __init__(
        self,
        model: Any,
        state: State | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        seed: int = 0,
        chunk_size: int = 4096,
        undo_turns: int = 1,
    ) -> None:
        if chunk_size < 1:
            raise ConfigError(f"chunk_size={chunk_size} reads nothing; use at least 1")
        if undo_turns < 0:
            raise ConfigError(f"undo_turns={undo_turns} is negative; use 0 to keep no earlier state")
        draw(seed, 0)  # a bad seed is refused here, not at the first token
        rows = None if state is None else batch_size(state)
        if rows not in (None, 1):
            raise StateError(f"a session is one stream and the state holds {rows}; take one with select(state, [0])")
        with torch.no_grad():
            self._now = _Moment(model.init_state(1) if state is None else state, None, 0)
        self.model, self.tokenizer, self.seed, self.chunk_size = model, tokenizer, seed, chunk_size
        self._before: deque[_Moment] = deque(maxlen=undo_turns)

    @property
    def state(self) -> State:
        """What the stream remembers, of one row."""
        return self._now.state

    @property
    def logits(self) -> Float[Tensor, "1 V"] | None:
        """What is predicted after the last token; None before the first."""
        return self._now.logits

    @property
    def tokens_seen(self) -> int:
        """Tokens this session has read, its own included."""
        return self._now.tokens_seen

    @property
    def state_bytes(self) -> int:
        """Bytes the state occupies now: of a bounded memory, the same at the first border and at the millionth."""
        return state_bytes(self._now.state)

    def read(self, source: str | bytes | Tensor | Sequence[int] | Iterable[Any]) -> int:
        """Read a text (or its bytes), token ids, or an iterable of either, however long; the number of tokens read.

        An iterable gives chunks of text, chunks of ids, or single ids; it is drawn from as it is read and never held, so
        memory stays constant. Chunks of text are read as the one text they are. If the iterable raises, all that it gave
        before has been read. Nothing to read is no turn.
        """
        start, broken = self._now, []
        held: Tensor | None = None  # one piece back, because the last token is read for its logits
        with reading(self.model):
            try:
                for piece in _until_broken(self._pieces(source, broken), broken):
                    if held is not None:
                        self._advance(held)
                    held = piece
                if held is not None:
                    self._finish(held)
            finally:
                if self._now is not start:
                    self._before.append(start)
        if broken:
            raise broken[0]
        return self._now.tokens_seen - start.tokens_seen

    def tokens(
        self,
        n: int | None = None,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = None,
        seed: int | None = None,
        stop: Any = (),
    ) -> Iterator[int]:
        """Generate token ids one by one, `n` of them or without end; each is read before it is handed out.

        The caller may stop at any token and go on later: the stream is where the last token left it. Generation ends
        after a token id in `stop`, or after the token that completes a text in `stop` (which needs a tokenizer).
        Greedy at `temperature=0`. `seed` replaces the session's own.
        """
        sampler = Sampler(temperature=temperature, top_p=top_p, top_k=top_k)
        seed = self.seed if seed is None else seed
        draw(seed, 0)
        if n is not None and n < 0:
            raise ConfigError(f"n={n} tokens cannot be generated; use 0 or more, or None for no end")
        if n != 0:
            self._predicted()
        return self._generate(n, sampler, seed, Stops(stop, self.tokenizer))

    def stream(self, n: int | None = None, **how: Any) -> Iterator[str]:
        """`tokens` as pieces of text, each handed out as soon as its characters are whole. Takes what `tokens` takes."""
        if self.tokenizer is None:
            raise InputError("this session has no tokenizer to turn tokens into text; give it one, or use tokens()")
        return self._texts(self.tokens(n, **how), TextOut(self.tokenizer))

    def generate(self, n: int, **how: Any) -> str | list[int]:
        """Generate `n` tokens (fewer at a stop): text if the session has a tokenizer, token ids if not.

        Takes what `tokens` takes. What is returned is what was read: a stop that was met is part of it.
        """
        return list(self.tokens(n, **how)) if self.tokenizer is None else "".join(self.stream(n, **how))

    def undo(self) -> None:
        """Take back the last turn: one call of `read`, or the tokens drawn from one call of `generate`."""
        if not self._before:
            kept = self._before.maxlen
            raise StateError(
                f"there is no turn to take back: of the {kept} this session keeps none is left; Session(undo_turns=...) keeps more"
            )
        self._now = self._before.pop()

    def fork(self, n: int) -> list["Session"]:
        """`n` sessions that go on from here, each its own way; this one stays as it is.

        They share the present state, which nothing writes to; from their next token on each has its own. Fork i draws
        with seed + i, so the first continues as this session would.
        """
        if n < 1:
            raise ConfigError(f"fork(n={n}) makes nothing; use at least 1")
        forks = []
        for i in range(n):
            session = Session(
                self.model,
                self._now.state,
                self.tokenizer,
                seed=self.seed + i,
                chunk_size=self.chunk_size,
                undo_turns=self._before.maxlen or 0,
            )
            session._now, session._before = self._now, self._before.copy()
            forks.append(session)
        return forks

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the stream to a safetensors file, beside its place and then renamed; it is also a plain state file.

        The tokens themselves, the tokenizer and the turns of `undo` are not in it.
        """
        logits = self._now.logits
        session = {
            "tokens_seen": self._now.tokens_seen,
            "seed": self.seed,
            "weights": fingerprint_weights(self.model),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            # as numbers: JSON carries every float exactly, and the file stays one that load_state reads
            "logits": None if logits is None else logits[0].double().tolist(),
            "logits_dtype": None if logits is None else str(logits.dtype).removeprefix("torch."),
        }
        save_state(self._now.state, path, model=self.model, session=session)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, tokenizer: Tokenizer | None = None, **options: Any) -> "Session":
        """The session that `save` wrote, for the same model; it goes on as if it had never stopped.

        Raises `StateError` for a missing, truncated or foreign file, and for a model of another config or other weights.
        `options` are those of `Session`; the seed is the saved one unless it is given.
        """
        state, metadata = read_state(path, model)
        saved = metadata.get("session")
        if not isinstance(saved, dict) or {"tokens_seen", "seed", "weights", "tokenizer", "logits", "logits_dtype"} - saved.keys():
            raise StateError(f"{os.fspath(path)} holds a state without a session; open it with Session(model, load_state(path, model))")
        if saved["weights"] != fingerprint_weights(model):
            raise StateError(
                f"{os.fspath(path)} was saved with other weights of this model; use the checkpoint it was saved with,"
                " or go on with these by Session(model, load_state(path, model))"
            )
        if tokenizer is not None and saved["tokenizer"] not in (None, tokenizer.fingerprint):
            raise StateError(f"{os.fspath(path)} was saved with another tokenizer; use the one that was saved with the model")
        session = cls(model, state, tokenizer, **{"seed": saved["seed"], **options})
        logits = saved["logits"]
        if logits is not None:
            # float64 holds every value of the narrower types: the way there and back changes no bit
            numbers = torch.tensor(logits, dtype=torch.float64).to(getattr(torch, saved["logits_dtype"]))
            logits = numbers[None].to(next(model.parameters()).device)
        session._now = _Moment(session._now.state, logits, saved["tokens_seen"])
        return session

    def __repr__(self) -> str:
        return f"Session({type(self.model).__name__}, tokens_seen={self.tokens_seen}, state_bytes={self.state_bytes})"

    def _pieces(self, source: Any, broken: list[BaseException]) -> Iterator[Tensor]:
        """The source as tensors of token ids [T], 1 <= T <= chunk_size; what breaks it is put into `broken`."""
        if isinstance(source, str | bytes):
            source = (source,)
        elif isinstance(source, Tensor | np.ndarray) or (isinstance(source, Sequence) and source and isinstance(source[0], Integral)):
            source = (as_tokens(self.model, source),)  # checked as a whole: a wrong id in a list leaves the stream as it was
        if not isinstance(source, Iterable):
            raise InputError(f"a session reads text, token ids or an iterable of them, got {type(source).__name__}")
        items = _until_broken(iter(source), broken)
        first = next(items, None)
        if first is None:
            return
        items = chain((first,), items)
        if isinstance(first, str | bytes | bytearray):
            if self.tokenizer is None:
                raise InputError("this session has no tokenizer to read text with; give it one, or read token ids")
            chunks: Iterator[Any] = self.tokenizer.encode_chunks(as_bytes(items))
        else:
            chunks = self._gathered(items)
        for chunk in chunks:
            yield from (piece for piece in as_tokens(self.model, chunk).split(self.chunk_size) if len(piece))

    def _gathered(self, items: Iterator[Any]) -> Iterator[Any]:
        """Single ids as chunks; chunks as they come."""
        ids: list[int] = []
        for item in items:
            if isinstance(item, Integral):
                ids.append(int(item))
            if ids and (len(ids) == self.chunk_size or not isinstance(item, Integral)):
                yield ids
                ids = []
            if not isinstance(item, Integral):
                yield item
        if ids:
            yield ids

    def _predicted(self) -> Float[Tensor, "1 V"]:
        if self._now.logits is None:
            raise StateError("nothing was read yet, so nothing is predicted; read a prompt first, of one token at least")
        return self._now.logits

    def _advance(self, tokens: Tensor) -> None:
        self._now = _Moment(self.model.advance(tokens[None], self._now.state), None, self._now.tokens_seen + len(tokens))

    def _finish(self, tokens: Tensor) -> None:
        if len(tokens) > 1:
            self._advance(tokens[:-1])
        self._step(tokens[-1:])

    def _step(self, token: Tensor) -> None:
        logits, state = self.model.step(token, self._now.state)
        self._now = _Moment(state, logits, self._now.tokens_seen + 1)

    def _generate(self, n: int | None, sampler: Sampler, seed: int, stops: Stops) -> Iterator[int]:
        made = 0
        while n is None or made < n:
            before = self._now
            # the mode is entered for each token: a generator that kept it open would impose it on its caller
            with reading(self.model):
                chance = torch.tensor([draw(seed, before.tokens_seen)], dtype=torch.float64)
                token = sampler.choose(self._predicted(), chance)
                self._step(token)
            if made == 0:
                self._before.append(before)
            made += 1
            yield int(token)
            if stops.met(int(token)):
                return

    @staticmethod
    def _texts(tokens: Iterator[int], out: TextOut) -> Iterator[str]:
        for token in tokens:
            if text := out.take(token):
                yield text
        if text := out.rest():
            yield text


def _until_broken(items: Iterator[Any], broken: list[BaseException]) -> Iterator[Any]:
    """The items up to an error, which is kept for later: what came before it is read first."""
    try:
        yield from items
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (raised again by `read`)
        broken.append(error)

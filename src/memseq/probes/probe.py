"""What a probe is: a question put to a model, in parts that can be kept, with an answer in JSON values.

    subject = Subject(name="mine", model=model, tokenizer=Bytes(), documents=(ids,))
    RecallProbe(length=1024).run(subject)          -> {"accuracy": [[...]], ..., "says": [{"question", "answer", "value"}]}

A probe knows of a model the law alone: `model(tokens, state)`, `advance`, `init_state`, its `config.vocab_size`. What it may
need beside (text, the layers, the slots) is handed to it in a `Subject`; a probe whose need is not met says which. It reads in
pieces and forks states to ask, so that what it holds does not grow with the stream.

`run` measures part by part: a part that was kept before is not measured again, and each new one is told to `done`.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from memseq.errors import ConfigError, DataError
from memseq.streams import Tokenizer, reading
from memseq.streams.reading import device_of

__all__ = ["NEEDS", "Anatomy", "Probe", "Subject"]

NEEDS = {
    "text": "a text to read; name one with --text, or give the model a tokenizer",
    "layers": "a model whose layers can be listened to",
    "slots": "a model with slots",
    "attention": "a model whose attention weights can be seen",
}

SAMPLE, FEW = 1 << 16, 4  # tokens that are counted to know the common ones, and how often one must be met


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Places inside a model, found by who knows its classes; empty where there are none."""

    layers: tuple[nn.Module, ...] = ()  # modules whose first input is the residual stream, from the first layer's to the head's
    embedding: Callable[[], Tensor] | None = None  # [V, D]
    readers: tuple[nn.Module, ...] = ()  # of slots: called with (tokens [B, L, D], slots [B, N, D])
    writers: tuple[nn.Module, ...] = ()  # of slots: called with (tokens [B, L, D], state)
    attention: Any = None  # what shows and silences heads of attention: see `retrieval_heads`


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under measurement, and what is known of it."""

    name: str
    model: Any
    tokenizer: Tokenizer | None = None
    documents: tuple[NDArray[Any], ...] = ()  # token ids of text that the model was not trained on
    token_bytes: Any = None  # bytes of text that each token stands for, [V]
    trained_length: int | None = None  # tokens that its gradients reached back; None: unknown
    longest: int | None = None  # tokens that it can read at all; None: endless
    anatomy: Anatomy = field(default_factory=Anatomy)
    left_out: frozenset[int] = frozenset()  # tokens that its text does not hold, by wish

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def has_text(self) -> bool:
        return sum(len(ids) for ids in self.documents) > 1

    def lacks(self, need: str) -> bool:
        """Whether the model, or what is known of it, does not have what `NEEDS` names."""
        have = {
            "text": self.has_text,
            "layers": len(self.anatomy.layers) > 1 and self.anatomy.embedding is not None,
            "slots": bool(self.anatomy.writers),
            "attention": self.anatomy.attention is not None,
        }
        return not have[need]

    def text(self, length: int, *, start: int = 0) -> Int64[Tensor, "length"]:
        """`length` tokens of its text from `start` on, over and over where it is shorter; random tokens where there is none."""
        if self.has_text:
            return torch.from_numpy(_around(self.documents, start, length)).to(self.device)
        kept = torch.tensor([i for i in range(self.vocab_size) if i not in self.left_out] or range(self.vocab_size))
        drawn = torch.randint(len(kept), (length,), generator=torch.Generator().manual_seed(start))
        return kept[drawn].to(self.device)

    def without(self, tokens: Iterable[int]) -> "Subject":
        """The same with these tokens cut out of its text: what must not be met in between."""
        left_out = frozenset(tokens)
        kept = tuple(ids[~np.isin(ids, list(left_out))] for ids in self.documents)
        return replace(self, documents=kept, left_out=left_out)

    def ranked(self) -> list[int]:
        """The tokens of its text, the commonest first, without those that are met a few times only; all tokens, mixed, without a text."""
        if not self.has_text:
            return torch.randperm(self.vocab_size, generator=torch.Generator().manual_seed(0)).tolist()
        counts = np.bincount(_around(self.documents, 0, SAMPLE), minlength=self.vocab_size)
        return [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] >= FEW]


def _around(documents: Sequence[NDArray[Any]], start: int, length: int) -> NDArray[np.int64]:
    """`length` tokens of all documents in a circle, from place `start` on; none but these is copied."""
    total = sum(len(ids) for ids in documents)
    out, filled, at = np.empty(length, dtype=np.int64), 0, start % total
    while filled < length:
        for ids in documents:
            if at >= len(ids):
                at -= len(ids)
                continue
            piece = ids[at : at + length - filled]
            out[filled : filled + len(piece)] = piece
            filled, at = filled + len(piece), 0
            if filled == length:
                break
    return out


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A subclass names itself and says what it needs; it defines `parts`, `measure`, `conclude` and `says`."""

    name: ClassVar[str]
    about: ClassVar[str]  # one line for a person who knows nothing of it
    needs: ClassVar[tuple[str, ...]] = ()  # names of NEEDS

    length: int = 4096  # tokens read at most, after what is to be remembered
    samples: int = 16  # streams that are asked
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} measures nothing; use 1 or more")

    def parts(self, subject: Subject) -> list[str]:
        """Names of what is measured one after another; each is kept when it is done."""
        raise TypeError(f"{type(self).__name__} must define parts(subject)")

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        """One part, as JSON values; a function of the subject, of the settings and of the part alone."""
        raise TypeError(f"{type(self).__name__} must define measure(subject, part)")

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """All parts put together."""
        raise TypeError(f"{type(self).__name__} must define conclude(subject, parts)")

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The result in words: rows of a question, its answer, and the value in it."""
        raise TypeError(f"{type(self).__name__} must define says(result)")

    def unmet(self, subject: Subject) -> str | None:
        """What this probe needs and the subject has not, in words; None where all is there."""
        missing = [NEEDS[need] for need in self.needs if subject.lacks(need)]
        return f"{self.name} needs {' and '.join(missing)}" if missing else None

    def run(
        self,
        subject: Subject,
        *,
        kept: Mapping[str, dict[str, Any]] | None = None,
        done: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Measure what is not in `kept`, tell each part to `done`, and conclude.

        Raises `DataError` where the subject lacks what the probe needs.
        """
        if why := self.unmet(subject):
            raise DataError(why)
        found = dict(kept or {})
        with reading(subject.model):
            for part in self.parts(subject):
                if part not in found:
                    found[part] = self.measure(subject, part)
                    if done is not None:
                        done(part, found[part])
            result = self.conclude(subject, {part: found[part] for part in self.parts(subject)})
        return {**result, "says": self.says(result)}

    def generator(self, part: str) -> torch.Generator:
        """The source of chance of one part."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.name}/{part}".encode()) + (self.seed << 32))

    def room(self, subject: Subject, length: int) -> bool:
        """Whether the model can read so many tokens."""
        return subject.longest is None or length <= subject.longest


def say(question: str, answer: str, value: float | None = None) -> dict[str, Any]:
    """A row of the table that a probe speaks in."""
    return {"question": question, "answer": answer, "value": value}


def tokens_said(count: float) -> str:
    """>>> tokens_said(1)
    '1 token'
    """
    return "1 token" if count == 1 else f"{count:,.0f} tokens"

"""Pass key: one number in a long text that repeats itself; say it at the end.

Source: Landmark Attention (Mohtashami & Jaggi, arXiv:2305.16300) and Stuffed Mamba (Chen et al., arXiv:2410.07145).

    PasskeyTask         task sentence, filler, needle, filler, question; `n_filler` characters of filler, cut anywhere,
                        of which uniformly 0 ... n_filler stand before the needle; key uniform in 1 ... 50000
    PasskeyDepthTask    `n_blocks` whole blocks of filler, the needle before block int(depth (n_blocks - 1)) for depths
                        on a grid; key of five digits, 00000 ... 99999
    PasskeyWordsTask    filler, needle, filler, question, with one token for each word, sign and digit: `n_words` in all, of which
                        the needle stands anywhere; key as above. For models that are to learn it in a minute

In the first two tokens are bytes, so that no vocabulary helps or hinders. Two ways to ask:

    sample     rectangular batches for training, next-token prediction: labels[:, i] is the byte after inputs[:, i], at
               the answer's digits and the full stop that ends it. Keys of fewer digits get as much more filler.
    prompts    the published texts, of their own lengths, for models that generate: `streams.generate` reads them
               together, `is_right` judges: the first integer that was said is the key.

The filler is so predictable that this tests keeping over a distance, not choosing what to keep.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["PasskeyDepthTask", "PasskeyTask", "PasskeyWordsTask", "Prompt", "is_right"]

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them."
    " I will quiz you about the important information there."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
DIGITS = 5


class Case(NamedTuple):
    key: str
    n_before: int  # characters of filler before the needle
    depth: int  # the group it is counted in, per cent


class Prompt(NamedTuple):
    text: str
    answer: int
    depth: int  # per cent


def is_right(said: str, answer: int) -> bool:
    """Whether the first integer in what a model said is the key.

    >>> is_right(" 00042. Remember", 42), is_right("4242", 42), is_right("I forgot", 42)
    (True, False, False)
    """
    number = re.search(r"\d+", said)
    return number is not None and int(number.group()) == answer


class _Passkey(Task):
    """What the two versions share: texts of `_n_filler` characters of filler, and where the needle stands in them."""

    @property
    def _n_filler(self) -> int:
        raise TypeError(f"{type(self).__name__} must define _n_filler")

    def _cases(self, n: int, generator: torch.Generator) -> list[Case]:
        raise TypeError(f"{type(self).__name__} must define _cases(n, generator)")

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def length(self) -> int:
        return len(_write("0" * DIGITS, 0, self._n_filler)) + 1 + DIGITS

    def prompts(self, n: int, seed: int, split: str = "train") -> list[Prompt]:
        """`n` texts that end in the question, each with its key."""
        cases = self._cases(n, self.generator(seed, split))
        return [Prompt(_write(case.key, case.n_before, self._n_filler), int(case.key), case.depth) for case in cases]

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        cases = self._cases(batch_size, generator)
        # the needle tells the key twice and the answer once more: three characters a digit that is not there
        texts = [f"{_write(c.key, c.n_before, self._n_filler + 3 * (DIGITS - len(c.key)))} {c.key}." for c in cases]
        tokens = torch.frombuffer(bytearray("".join(texts).encode()), dtype=torch.uint8).view(batch_size, -1).long()
        inputs, labels = tokens[:, :-1], tokens[:, 1:].clone()
        n_asked = torch.tensor([len(case.key) + 1 for case in cases])
        labels[torch.arange(labels.shape[1]) < labels.shape[1] - n_asked[:, None]] = IGNORE
        return Batch(inputs.clone(), labels, {"depth": torch.tensor([case.depth for case in cases])})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        for row, tokens in zip(said, inputs.tolist(), strict=True):
            text = bytes(tokens).decode()
            answer = f" {text.split('The pass key is ', 1)[1].split('.', 1)[0]}."
            start = text.rindex(QUESTION) + len(QUESTION) - 1
            row[start : start + len(answer)] = torch.tensor(list(answer.encode()))
        return said


@dataclass(frozen=True, kw_only=True)
class PasskeyTask(_Passkey):
    """Landmark Attention's: filler and needle are placed to the character."""

    name: ClassVar[str] = "passkey"
    source: ClassVar[str] = "arXiv:2305.16300"

    n_filler: int = 256  # characters, before and after the needle together

    def __post_init__(self) -> None:
        if self.n_filler < 0:
            raise ConfigError(f"n_filler={self.n_filler} is negative; use 0 characters or more")

    @property
    def _n_filler(self) -> int:
        return self.n_filler

    @property
    def chance(self) -> float:
        """Of the bytes asked, those that are right when each is the likeliest after the bytes before it."""
        return _likeliest(tuple(f"{key}." for key in range(1, 50001)))

    def _cases(self, n: int, generator: torch.Generator) -> list[Case]:
        keys = torch.randint(1, 50001, (n,), generator=generator).tolist()
        before = torch.randint(self.n_filler + 1, (n,), generator=generator).tolist()
        return [Case(str(key), at, 10 * (10 * at // (self.n_filler + 1))) for key, at in zip(keys, before, strict=True)]


@dataclass(frozen=True, kw_only=True)
class PasskeyDepthTask(_Passkey):
    """Stuffed Mamba's: whole blocks, a grid of depths, keys of five digits."""

    name: ClassVar[str] = "passkey_depth"
    source: ClassVar[str] = "arXiv:2410.07145"

    n_blocks: int = 4
    n_depths: int = 11  # 0 %, 10 %, ..., 100 %

    def __post_init__(self) -> None:
        if self.n_blocks < 1:
            raise ConfigError(f"n_blocks={self.n_blocks} leaves no filler; use at least 1")
        if not 2 <= self.n_depths <= 101:
            raise ConfigError(f"n_depths={self.n_depths} must lie in 2 to 101, from 0 % to 100 %")

    @property
    def _n_filler(self) -> int:
        return self.n_blocks * len(FILLER)

    @property
    def chance(self) -> float:
        """Each of five digits by chance, and the full stop for sure."""
        return (DIGITS / 10 + 1) / (DIGITS + 1)

    def _cases(self, n: int, generator: torch.Generator) -> list[Case]:
        keys = torch.randint(10**DIGITS, (n,), generator=generator).tolist()
        places = torch.randint(self.n_depths, (n,), generator=generator).tolist()
        last = self.n_depths - 1
        # whole numbers: int(depth (n_blocks - 1)) in floats would put depth 0.7 of ten blocks one block early
        blocks = [place * (self.n_blocks - 1) // last for place in places]
        return [
            Case(f"{key:0{DIGITS}}", block * len(FILLER), round(100 * place / last))
            for key, block, place in zip(keys, blocks, places, strict=True)
        ]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[.?]", text)


KEY = -1  # in the place of a digit of the key
WORDS = tuple(dict.fromkeys([*"0123456789", *_words(FILLER + NEEDLE.format(key="0") + QUESTION)]))  # a digit is its own token


@dataclass(frozen=True, kw_only=True)
class PasskeyWordsTask(Task):
    """The same text by words, without the sentence that announces it. Next-token prediction, scored at the five digits of the answer."""

    name: ClassVar[str] = "passkey_words"
    source: ClassVar[str] = "arXiv:2305.16300"

    n_words: int = 96  # tokens of a text; the answer's last digit is not read any more

    def __post_init__(self) -> None:
        if self._n_filler < 0:
            least = self.n_words - self._n_filler
            raise ConfigError(f"n_words={self.n_words} has no room for needle and question; use at least {least}")

    @property
    def vocab_size(self) -> int:
        return len(WORDS)

    @property
    def length(self) -> int:
        return self.n_words

    @property
    def chance(self) -> float:
        return 1 / 10

    @property
    def _n_filler(self) -> int:
        return self.n_words - len(_numbers(NEEDLE)) - len(_numbers(QUESTION)) - (DIGITS - 1)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        key = torch.randint(10, (batch_size, DIGITS), generator=generator)
        before = torch.randint(self._n_filler + 1, (batch_size,), generator=generator)
        filler, needle, question = (torch.tensor(_numbers(text)) for text in (FILLER, NEEDLE, QUESTION))
        place = torch.arange(self._n_filler + len(needle))
        since = place - before[:, None]  # from the needle's first word on
        after = since - len(needle)
        text = filler[torch.where(after < 0, place, after) % len(filler)]
        text = torch.where((since >= 0) & (after < 0), needle[since.clamp(0, len(needle) - 1)], text)
        for told in (needle == KEY).nonzero()[:, 0].view(-1, DIGITS):
            text.scatter_(1, before[:, None] + told, key)
        inputs = torch.cat([text, question.expand(batch_size, -1), key[:, :-1]], dim=1)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, -DIGITS:] = key
        return Batch(inputs, labels, {"depth": 10 * (10 * before // (self._n_filler + 1))})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        first = (inputs < 10).int().argmax(1, keepdim=True)
        said = torch.zeros_like(inputs)
        said[:, -DIGITS:] = inputs.gather(1, first + torch.arange(DIGITS))
        return said


def _write(key: str, n_before: int, n_filler: int) -> str:
    filler = FILLER * (n_filler // len(FILLER) + 1)
    return "\n".join([TASK, filler[:n_before], NEEDLE.format(key=key), filler[: n_filler - n_before], QUESTION])


def _numbers(text: str) -> list[int]:
    """The tokens of a text, `KEY` for each digit of its key."""
    return [WORDS.index(word) if word != "0" else KEY for word in _words(text.format(key=" ".join("0" * DIGITS)))]


@cache
def _likeliest(words: tuple[str, ...]) -> float:
    """The share of characters told by the likeliest continuation of what stands before them in equally likely words."""
    counts = Counter(word[:end] for word in words for end in range(1, len(word) + 1))
    best: dict[str, int] = {}
    for prefix, count in counts.items():
        best[prefix[:-1]] = max(best.get(prefix[:-1], 0), count)
    return sum(best.values()) / counts.total()

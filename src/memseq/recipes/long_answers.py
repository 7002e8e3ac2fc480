"""Questions about long papers and meetings, in the shapes of PubMedQA and of QMSum, by the length of what is read.

Sources: HMT (He et al., arXiv:2405.06067), which is measured on both; PubMedQA (Jin et al., arXiv:1909.06146); QMSum (Zhong et al.,
arXiv:2104.05938). Files and what is made in their likeness: `tasks/inquiries.py`.

    python -m memseq.recipes.long_answers studies  path/to/data --json results.json
    python -m memseq.recipes.long_answers meetings path/to/data --json results.json
    python -m memseq.recipes.long_answers pubmedqa path/to/data --file ori_pqal.json --json results.json
    python -m memseq.recipes.long_answers qmsum    path/to/data --file val.jsonl --json results.json

    studies     a chain of contexts, each the story of a town (bAbI's task 10, official sentences), among sentences of novels; is someone
                somewhere there? yes, no or maybe, and the sentence that decides it
    meetings    speakers say where things are, among sentences of novels; what did one of them say of one thing? The sentence
    pubmedqa    contexts of several questions, one after another; the decision, and the conclusion
    qmsum       the turns that a query is about, with as many others as there is room for; the answer

Tokens are words. A text is so many segments of 32 words, then a segment for each question: its first half ends with the question, its
second begins with the answer, so that HMT, which summarises the first half, never sees what it is to say. In training four
questions follow a text that is made, one follows an official text; scored is one, from stories and novels of the test split (of official
files, the last fifth). One backbone for all, of width 32: a convolution over six words and two blocks of attention; the same processor
seconds, replay through all segments, a curriculum of 1, 2, 4 and 8 segments.

    hmt               the last 16 vectors, one a segment, and 8 words again
    rmt, 16 vectors   a state of as many bytes
    window 64         no segments: attention to the last 64 words, twice
    no memory         the last segment alone: what an answer looks like

`right`: the decision, or all words of the answer; `perplexity`: of the answer's words, each after those before it.
"""

import argparse
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.hmt import HMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.recipes.babilong import words_of
from memseq.recipes.fitting import Table
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.rmt import Contender, trained
from memseq.tasks import babi, inquiries
from memseq.tasks.inquiries import Inquiry
from memseq.tasks.prose import dice, split_sentences
from memseq.tasks.task import IGNORE, Batch, Task
from memseq.tasks.text import books
from memseq.training.curriculum import Curriculum

__all__ = ["LongAnswerTask", "Shelf", "contenders", "main", "shelf"]

D, HEADS, L, KEPT = 32, 2, 32, 16
VOCABULARY = 512
FREQUENT = 300_000  # characters of novels that prose is made of
WINDOWS = Curriculum(stages=(1, 2, 4, 8), least=1, steps=None, mastered=0.9)
ASKED = (2, 4, 8, 15)  # segments of text
DECISIONS = ("yes", "no", "maybe")
SHORT = 4  # sentences of a story, at most


@runtime_checkable
class Source(Protocol):
    """Draws a text of at most n_words words: passages, and what can be asked about them."""

    @property
    def questions(self) -> int:
        """Those that can be asked of one text in training."""
        ...

    def __call__(self, n_words: int, split: str, chance: random.Random) -> list[Inquiry]: ...


@lru_cache(maxsize=1 << 16)  # passages of official files come again and again
def _size(text: str) -> int:
    return len(words_of(text))


@dataclass(frozen=True, eq=False)
class Studies:
    """A town with its story for every segment."""

    stories: dict[str, list[babi.Question]]  # by split
    questions: int = 4

    def __call__(self, n_words: int, split: str, chance: random.Random) -> list[Inquiry]:
        told = chance.sample(self.stories[split], max(1, min(len(inquiries.TOWNS), n_words // L)))
        papers = inquiries.parse_pubmedqa(inquiries.made_studies(told, chance))
        while len(papers) > 1 and sum(_size(paper.passages[0]) for paper in papers) > n_words:
            papers.pop()
        texts = tuple(paper.passages[0] for paper in papers)
        return [paper._replace(passages=texts, gold=(number,)) for number, paper in enumerate(papers)]


@dataclass(frozen=True, eq=False)
class Meetings:
    """A saying for every segment, and turns between them."""

    sentences: dict[str, tuple[str, ...]]  # by split
    questions: int = 4

    def __call__(self, n_words: int, split: str, chance: random.Random) -> list[Inquiry]:
        n_said = max(1, n_words // L)
        asked = inquiries.parse_qmsum(inquiries.made_meeting(n_said, max(n_said, n_words // 14), self.sentences[split], chance))
        said = sorted(one.gold[0] for one in asked)
        clipped = inquiries.chained(asked[0]._replace(gold=tuple(said)), (), n_words, _size, chance)
        places = dict(zip(said, clipped.gold, strict=True))
        return [one._replace(passages=clipped.passages, gold=(places[one.gold[0]],)) for one in asked]


@dataclass(frozen=True, eq=False)
class Official:
    """What a file holds, the last fifth for testing."""

    held: list[Inquiry]
    chain: bool  # contexts of other questions fill a text
    questions: int = 1

    def __call__(self, n_words: int, split: str, chance: random.Random) -> list[Inquiry]:
        cut = len(self.held) - max(1, len(self.held) // 5)
        mine = self.held[:cut] if split == "train" else self.held[cut:]
        asked = chance.choice(mine)
        others = [one for one in chance.sample(mine, min(len(mine), 8)) if one.passages != asked.passages] if self.chain else []
        return [inquiries.chained(asked, others, n_words, _size, chance)]


@dataclass(frozen=True, eq=False)
class Shelf:
    """What questions are made of: the words that have a number (0 is any other), sentences to fill a text with, and the source."""

    numbers: dict[str, int]
    prose: dict[str, tuple[str, ...]]
    source: Source

    def ids(self, text: str) -> list[int]:
        return [self.numbers.get(word, 0) for word in words_of(text)]


def shelf(kind: str, data: Path, file: str | None = None) -> Shelf:
    """Everything for one kind of question, from a folder that holds `babi/en` and `books`, and an official file where one is asked for."""
    prose = {split: _sentences(data, split) for split in ("train", "test")}
    if kind == "studies":
        found = {split: babi.read_babi(next((data / "babi" / "en").glob(f"qa10_*_{split}.txt.gz"))) for split in prose}
        source: Source = Studies({split: [q for q in questions if len(q.facts) <= SHORT] for split, questions in found.items()})
    elif kind == "meetings":
        source = Meetings(prose)
    elif file is None:
        raise ConfigError(f"{kind} is read from an official file; name it by --file")
    else:
        source = Official(inquiries.read_pubmedqa(file) if kind == "pubmedqa" else inquiries.read_qmsum(file), chain=kind == "pubmedqa")
    chance, texts = random.Random(0), [" ".join(prose["train"])]
    for _ in range(300):
        for one in source(8 * L, "train", chance):
            texts += [*one.passages, *3 * [one.question, one.decision, one.answer]]
    must = dict.fromkeys([*DECISIONS, ".", "?"])
    frequent = (word for word, _ in Counter(words_of(" ".join(texts))).most_common())
    chosen = [*must, *(word for word in frequent if word not in must)][: VOCABULARY - 1]
    return Shelf({word: 1 + i for i, word in enumerate(chosen)}, prose, source)


def _sentences(data: Path, split: str) -> tuple[str, ...]:
    text = books(data / "books", split)
    share = FREQUENT // len(text)
    plain = " ".join(next(text.pieces(number))[:share].decode("utf-8", errors="ignore") for number in range(len(text)))
    return tuple(sentence for sentence in split_sentences(" ".join(plain.split())) if 3 <= len(words_of(sentence)) <= 24)


@dataclass(frozen=True, kw_only=True)
class LongAnswerTask(Task):
    """A text of `n_segments` segments, then a segment a question; labels are the answers' words, each at the word before it."""

    name: ClassVar[str] = "long_answers"
    source: ClassVar[str] = "arXiv:2405.06067"

    shelf: Shelf
    n_segments: int = 4
    segment_length: int = L
    n_asked: int | None = None  # None: as many as the source has in training

    @property
    def vocab_size(self) -> int:
        return VOCABULARY

    @property
    def asked(self) -> int:
        return self.shelf.source.questions if self.n_asked is None else self.n_asked

    @property
    def length(self) -> int:
        return (self.n_segments + self.asked) * self.segment_length

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        chance, split = dice(generator), "train" if generator.initial_seed() % 2 == 0 else "test"
        rows = [self._write(split, chance) for _ in range(batch_size)]
        inputs, labels = (torch.tensor(part) for part in zip(*rows, strict=True))
        return Batch(inputs, labels, {})

    def _write(self, split: str, chance: random.Random) -> tuple[list[int], list[int]]:
        room = self.n_segments * self.segment_length
        found = self.shelf.source(room, split, chance)
        asked = [chance.choice(found) for _ in range(self.asked)] if len(found) < self.asked else chance.sample(found, self.asked)
        text = self._filled([self.shelf.ids(passage)[:room] for passage in found[0].passages], room, split, chance)
        labels = room * [IGNORE]
        for one in asked:
            said, answer = self._asked(one, split, chance)
            text += said
            labels += answer
        return text, labels

    def _filled(self, passages: list[list[int]], room: int, split: str, chance: random.Random) -> list[int]:
        """Passages in their order with sentences between them, `room` words; the last sentence is cut."""
        prose = self.shelf.prose[split]
        room -= sum(map(len, passages))
        between, at = [], chance.randrange(len(prose))
        while room > 0:
            between.append(self.shelf.ids(prose[at % len(prose)])[:room])
            room, at = room - len(between[-1]), at + 1
        for place, sentence in zip(sorted(chance.choices(range(len(passages) + 1), k=len(between)), reverse=True), between, strict=True):
            passages.insert(place, sentence)
        return [word for passage in passages for word in passage]

    def _asked(self, one: Inquiry, split: str, chance: random.Random) -> tuple[list[int], list[int]]:
        """A segment: prose, the question, then the answer, then prose."""
        half = self.segment_length // 2
        question = self.shelf.ids(one.question)[-half:]
        answer = self.shelf.ids(f"{one.decision} {one.answer}")[: self.segment_length - half]
        before, after = half - len(question), self.segment_length - half - len(answer)
        filler = self._filled([], before + after, split, chance)
        labels = self.segment_length * [IGNORE]
        labels[half - 1 : half - 1 + len(answer)] = answer
        return [*filler[:before], *question, *answer, *filler[before:]], labels


def contenders(seconds: float) -> list[Contender]:
    """Every row of the table."""
    convolution = BaseConvConfig(d_model=D, width=6)

    def stack(memory: Any) -> StackConfig:
        return StackConfig(vocab_size=VOCABULARY, d_model=D, layers=(convolution, memory, memory))

    def within(inputs: int) -> StackConfig:
        return stack(SegmentAttentionConfig(d_model=D, n_heads=HEADS, segment_length=inputs))

    hmt = HMTConfig(backbone=within(L + 10), segment_length=L, n_kept=KEPT, n_sensory=8, query="current", feed="normed")
    models = {
        "hmt": hmt,
        f"rmt, {KEPT} vectors": RMTConfig(backbone=within(L + 2 * KEPT), n_slots=KEPT, segment_length=L, mask="causal", feed="normed"),
        "window 64": stack(SlidingWindowConfig(d_model=D, n_heads=HEADS, window=64)),
        "no memory": RMTConfig(backbone=within(L), n_slots=0, segment_length=L, mask="causal"),
    }
    return [Contender(name=name, model=model, seconds=seconds, curriculum=WINDOWS, lr=5e-3, times=()) for name, model in models.items()]


@torch.no_grad()
def scores(model: Any, batch: Batch, decided: Sequence[int] = ()) -> dict[str, float]:
    """Of the answers in the last segment: the first word among `decided`, or else all words."""
    *before, last = batch.segments(L)
    state = model.init_state(len(batch.inputs))
    for piece in before:
        state = model.advance(piece.tokens, state)
    logits = model(last.tokens, state)[0]
    asked = last.targets != IGNORE
    nats = F.cross_entropy(logits.flatten(0, 1), last.targets.flatten(), ignore_index=IGNORE)
    if decided:
        first = L // 2 - 1
        right = torch.tensor(decided)[logits[:, first, list(decided)].argmax(-1)] == last.targets[:, first]
    else:
        right = ((logits.argmax(-1) == last.targets) | ~asked).all(1)
    return {"right": round(float(right.float().mean()), 4), "perplexity": round(math.exp(float(nats)), 3)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Questions about long papers and meetings, by length.")
    parser.add_argument("kind", choices=("studies", "meetings", "pubmedqa", "qmsum"), help="what is asked")
    parser.add_argument("data", type=Path, help="a folder that holds babi/en and books")
    parser.add_argument("--file", help="the official file, for pubmedqa and qmsum")
    parser.add_argument("--seconds", type=float, default=90.0, help="of training, each, in processor time (default 90)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--asked", type=int, default=256, help="questions of each length (default 256)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    task = partial(LongAnswerTask, shelf=shelf(given.kind, given.data, given.file))
    tests = {n: task(n_segments=n, n_asked=1).sample(given.asked, seed=n, split="test") for n in ASKED}
    decided = [task().shelf.numbers[word] for word in DECISIONS] if given.kind in ("studies", "pubmedqa") else []
    table = Table(f"python -m memseq.recipes.long_answers KIND DATA --seconds {given.seconds:g}", given.json, segment_length=L)
    there = {(row["task"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders(given.seconds):
            if given.only not in (None, what.name) or (given.kind, what.name, seed) in there:
                continue
            model, row = trained(what, seed=seed, task=lambda n: task(n_segments=n))
            found: dict[str, dict[str, float]] = {}
            for n, batch in tests.items():
                for metric, value in scores(model.eval(), batch, decided).items():
                    found.setdefault(metric, {})[str(n)] = value
            table.add(task=given.kind, **row, **found, likeliest=_likeliest(tests.values(), bool(decided)))


def _likeliest(tests: Any, decided: bool) -> float:
    """The share of the likeliest answer."""
    answers = [tuple(labels[labels != IGNORE].tolist()) for batch in tests for labels in batch.labels]
    counted = Counter(answer[:1] if decided else answer for answer in answers)
    return round(counted.most_common(1)[0][1] / len(answers), 4)


if __name__ == "__main__":
    main()

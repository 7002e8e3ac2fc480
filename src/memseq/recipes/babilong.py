"""BABILong in small: who is where, told in a few sentences that are scattered through a novel, and asked at its end.

Sources: BABILong (Kuratov et al., arXiv:2406.10149), after bAbI (Weston et al., arXiv:1502.05698); the systems are RMT
(arXiv:2207.06881) and ARMT (arXiv:2407.04841).

    python -m memseq.recipes.babilong path/to/data --json results.json

Tokens are words: those of bAbI, and the most frequent of the novels. Training stories are simulated (`tasks/babi.py`) and hidden in
training novels; while training, everything is asked at the end and something on the way, of the task and of those before it. What is
scored are the official test questions of the task, one a text, hidden in novels of the test split, each fact at a place drawn without
regard to the others. A text has so many segments of 32 words; the curriculum goes up to 4 of them (8 for the third task, whose stories
are longer), by memory replay through all. One backbone for all: a convolution over six words, which ties a room to its person (two blocks
of attention alone had not found that out after 700 steps), and blocks of attention within the segment: two of width 32 for the first
task, three of width 64 for the others.

    rmt, noise          8 vectors, noise on what passes a border while training (`recipes/rmt.py`)
    armt                a matrix a layer, written by 8 vectors
    titans              one block of attention; the others are Titans' memory, a matrix a head
    gated_deltanet      the same with Gated DeltaNet
    no memory           the same blocks, segment by segment: it answers where the last segment tells, and else the likeliest room

The folder holds `babi/en` and `books`. Rows that the file holds already are kept.
"""

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.titans import TitansConfig
from memseq.models.armt import ARMTConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.recipes.fitting import Table
from memseq.recipes.machine import keep_freed_memory
from memseq.recipes.rmt import Contender, accuracy, trained
from memseq.tasks import babi
from memseq.tasks.prose import dice, split_sentences
from memseq.tasks.task import IGNORE, Batch, Task
from memseq.tasks.text import books
from memseq.training.curriculum import Curriculum

__all__ = ["Background", "StoryTask", "contenders", "main", "novels", "words_of"]

L, HEADS, SLOTS = 32, 2, 8
WIDTH, BLOCKS = {1: 32, 2: 64, 3: 64}, {1: 2, 2: 3, 3: 3}  # by task: who carries what takes one step more than who is where
VOCABULARY = 384
FREQUENT = 400_000  # characters of novels that a background is made of
STAGES = {1: (1, 2, 4), 2: (2, 4), 3: (4, 8)}  # segments that hold a story of the task
ASKED = (1, 2, 4, 8, 16, 32)  # segments
FACT_WORDS = 10  # of a segment's words, so that a training story leaves room for questions
KIND = 3  # questions of a task at the end of a training story

Ids = tuple[int, ...]


def words_of(text: str) -> list[str]:
    """Words in small letters, full stops and question marks.

    >>> words_of("Where is Mary?")
    ['where', 'is', 'mary', '?']
    """
    return re.findall(r"[a-z]+|[.?]", text.lower())


@dataclass(frozen=True, eq=False)
class Background:
    """The words that have a number (0 is any other), and sentences of novels to hide something in."""

    numbers: dict[str, int]
    train: tuple[Ids, ...]
    test: tuple[Ids, ...]

    def ids(self, text: str) -> Ids:
        return tuple(self.numbers.get(word, 0) for word in words_of(text))


def novels(train: str, test: str) -> Background:
    """From two texts: the words of bAbI and the most frequent ones of the first."""
    told = (*babi.PEOPLE, *babi.ROOMS, *babi.THINGS, *babi.GO, *babi.TAKE, *babi.LEAVE, "the there where is was before ? .")
    known = dict.fromkeys(word for part in told for word in words_of(part))
    frequent = (word for word, _ in Counter(words_of(train)).most_common())
    chosen = [*known, *(word for word in frequent if word not in known)][: VOCABULARY - 1]
    numbers = {word: 1 + i for i, word in enumerate(chosen)}

    def sentences(text: str) -> tuple[Ids, ...]:
        found = (tuple(numbers.get(word, 0) for word in words_of(sentence)) for sentence in split_sentences(text))
        return tuple(ids for ids in found if 3 <= len(ids) <= 24)

    return Background(numbers, sentences(train), sentences(test))


@dataclass(frozen=True, kw_only=True)
class StoryTask(Task):
    """Facts in a text of `n_segments` segments that ends with a question; the label is at the question mark.

    Samples of split "train" ask on the way too, and at the end for all that was told; those of "test" ask once. Both are simulated.
    `official` gives those of a file.
    """

    name: ClassVar[str] = "babilong"
    source: ClassVar[str] = "arXiv:2406.10149"

    background: Background
    qa: int = 1
    n_segments: int = 4
    segment_length: int = L

    @property
    def vocab_size(self) -> int:
        return VOCABULARY

    @property
    def length(self) -> int:
        return self.n_segments * self.segment_length

    @property
    def chance(self) -> float:
        return 1 / len(babi.ROOMS)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        chance, rows = dice(generator), []
        train = generator.initial_seed() % 2 == 0
        while len(rows) < batch_size:
            story = babi.simulate(self.qa, chance, at_most=self.length // FACT_WORDS)
            between, last = (), ((story.question, story.answer),)
            if train:
                between, last = tuple(self._on_the_way(story.facts, chance)), tuple(self._all(story.facts, chance))
            written = self._write(story.facts, between, last, self.background.train if train else self.background.test, chance)
            if written is not None:
                rows.append(written)
        return self._batch(rows)

    def official(self, questions: Sequence[babi.Question], *, seed: int) -> Batch:
        """Those of `questions` whose stories fit, hidden in test novels."""
        chance = random.Random(seed)
        rows = [self._write(q.facts, (), ((q.question, q.answer),), self.background.test, chance) for q in questions]
        return self._batch([row for row in rows if row is not None])

    def _all(self, facts: tuple[str, ...], chance: random.Random) -> list[tuple[str, str]]:
        """Questions of this task and of those before it, of each kind three at most, in any order; with their answers."""
        asked = [one for qa in range(1, self.qa + 1) for one in _some(babi.askable(qa, facts), chance)]
        return chance.sample(asked, len(asked))

    def _on_the_way(self, facts: tuple[str, ...], chance: random.Random) -> Iterator[tuple[int, str, str]]:
        """(after so many facts, a question, its answer), one a segment but the last."""
        for _ in range(self.n_segments - 1):
            told = chance.randint(1, len(facts))
            for question, answer in self._all(facts[:told], chance)[:1]:
                yield told, question, answer

    def _write(
        self,
        facts: tuple[str, ...],
        between: Sequence[tuple[int, str, str]],
        last: Sequence[tuple[str, str]],
        sentences: Sequence[Ids],
        chance: random.Random,
    ) -> tuple[list[int], dict[int, int]] | None:
        """(words, {place: answer}), with as many of the `last` questions as there is room for; None where the story is too long for one."""
        ids = self.background.ids
        events: list[tuple[Ids, str]] = []
        for told, fact in enumerate(facts, start=1):
            events += [(ids(fact), ""), *((ids(question), answer) for after, question, answer in between if after == told)]
        room = self.length - sum(len(event) for event, _ in events)
        while (left := room - sum(len(ids(question)) for question, _ in last)) < 0 and len(last) > 1:
            last = last[1:]
        if left < 0:
            return None
        room = left
        prose, at = [], chance.randrange(len(sentences))
        while room > 0:
            sentence = sentences[at % len(sentences)]
            prose.append(sentence if len(sentence) <= room else (*sentence[: room - 1], self.background.numbers["."]))
            room, at = room - len(prose[-1]), at + 1
        text: list[int] = []
        asked: dict[int, int] = {}
        places = sorted(chance.choices(range(len(prose) + 1), k=len(events)))
        for place in range(len(prose) + 1):
            while places and places[0] == place:
                event, answer = events[len(events) - len(places)]
                text += event
                if answer:
                    asked[len(text) - 1] = ids(answer)[0]
                places.pop(0)
            text += prose[place] if place < len(prose) else ()
        for question, answer in last:
            text += ids(question)
            asked[len(text) - 1] = ids(answer)[0]
        return text, asked

    def _batch(self, rows: Sequence[tuple[list[int], dict[int, int]]]) -> Batch:
        inputs = torch.tensor([words for words, _ in rows])
        labels = torch.full_like(inputs, IGNORE)
        for row, (_, asked) in zip(labels, rows, strict=True):
            row[list(asked)] = torch.tensor(list(asked.values()))
        return Batch(inputs, labels, {})


def contenders(qa: int, seconds: float) -> list[Contender]:
    """Every row of the table."""
    D, blocks, convolution = WIDTH[qa], BLOCKS[qa], BaseConvConfig(d_model=WIDTH[qa], width=6)

    def stack(inputs: int) -> StackConfig:
        attention = SegmentAttentionConfig(d_model=D, n_heads=HEADS, segment_length=inputs)
        return StackConfig(vocab_size=VOCABULARY, d_model=D, layers=(convolution, *blocks * (attention,)))

    def rmt(n_slots: int, **fields: Any) -> RMTConfig:
        return RMTConfig(backbone=stack(L + 2 * n_slots), n_slots=n_slots, segment_length=L, mask="causal", **fields)

    def stream(memory: Any) -> StackConfig:
        attention = SegmentAttentionConfig(d_model=D, n_heads=HEADS, segment_length=L)
        return StackConfig(vocab_size=VOCABULARY, d_model=D, layers=(convolution, attention, *(blocks - 1) * (memory,)))

    models = {
        "rmt, noise 0.5": rmt(SLOTS, noise=0.5),
        "armt": ARMTConfig(backbone=stack(L + SLOTS), n_slots=SLOTS, segment_length=L, key_size=8),
        "titans": stream(TitansConfig(d_model=D, n_heads=HEADS, segment_length=16, depth=1)),
        "gated_deltanet": stream(GatedDeltaNetConfig(d_model=D, n_heads=HEADS)),
        "no memory": rmt(0),
    }
    lr = 5e-3 if qa == 1 else 3e-3
    windows = Curriculum(stages=STAGES[qa], least=STAGES[qa][0], steps=1000 if qa > 1 else None, mastered=0.95)
    return [Contender(name=name, model=model, seconds=seconds, curriculum=windows, lr=lr, times=()) for name, model in models.items()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="bAbI's questions in novels, by the number of segments.")
    parser.add_argument("data", type=Path, help="a folder that holds babi/en and books")
    parser.add_argument("--qa", type=int, default=1, choices=(1, 2, 3), help="bAbI's task (default 1)")
    parser.add_argument("--seconds", type=float, default=90.0, help="of training, each, in processor time (default 90)")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each row (default 1)")
    parser.add_argument("--only", default=None, help="one row, by its name")
    parser.add_argument("--asked", type=int, default=300, help="official questions, at most (default 300)")
    parser.add_argument("--json", help="write the result to this file; rows that it holds are kept")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    text = {split: _beginnings(given.data, split) for split in ("train", "test")}
    task = partial(StoryTask, background=novels(text["train"], text["test"]), qa=given.qa)
    file = next((given.data / "babi" / "en").glob(f"qa{given.qa}_*_test.txt.gz"))
    questions = babi.read_babi(file)[: given.asked]
    most = Counter(question.answer for question in questions).most_common(1)[0][1] / len(questions)
    command = f"python -m memseq.recipes.babilong DATA --qa {given.qa} --seconds {given.seconds:g}"
    table = Table(command, given.json, segment_length=L, chance=round(1 / len(babi.ROOMS), 4))
    there = {(row["task"], row["name"], row["seed"]) for row in table.rows}
    for seed in range(given.seeds):
        for what in contenders(given.qa, given.seconds):
            if given.only not in (None, what.name) or (f"qa{given.qa}", what.name, seed) in there:
                continue
            model, row = trained(what, seed=seed, task=lambda n: task(n_segments=n))
            found, counted = {}, {}
            for n in ASKED:
                batch = task(n_segments=n).official(questions, seed=n)
                counted[str(n)] = len(batch.inputs)
                found[str(n)] = accuracy(model, batch, L) if len(batch.inputs) else None
            table.add(task=f"qa{given.qa}", **row, accuracy=found, questions=counted, likeliest_room=round(most, 4))


def _some(asked: Sequence[tuple[str, str]], chance: random.Random) -> list[tuple[str, str]]:
    return chance.sample(asked, min(KIND, len(asked)))


def _beginnings(data: Path, split: str) -> str:
    """The beginning of the split's novels, a part of each."""
    text = books(data / "books", split)
    share = FREQUENT // len(text)
    return " ".join(next(text.pieces(number))[:share].decode("utf-8", errors="ignore") for number in range(len(text)))


if __name__ == "__main__":
    main()

"""bAbI and BABILong: who is where, who carries what, told in a few plain sentences, alone or scattered through a long text.

Source: bAbI (Weston et al., arXiv:1502.05698); BABILong (Kuratov et al., arXiv:2406.10149) hides its facts among the sentences of books.

    qa1    "Mary moved to the bathroom."                                      Where is Mary?
    qa2    ... "Mary got the football there." ... "Mary left the football."   Where is the football?
    qa3                                                                       Where was the football before the kitchen?

    read_babi(file)     the questions of an official file, any of the twenty tasks, each with all facts told before it
    simulate(qa, ...)   a world of our own for the first three: four people, six rooms, three things, the official sentences
    solve(...)          the answer, found by following the story: right on every question of the official files
    BabiTask            facts among other sentences, as bytes; `prompts` for models that generate, `is_right` judges

Facts keep their order; each stands at a place of its own drawn without regard to the others, as in BABILong. Between them stands the
documentation that comes with Python, or any text file.
"""

import gzip
import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError, InputError
from memseq.tasks.prose import dice, fit, sentences_of
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["BabiTask", "LongQuestion", "Question", "askable", "is_right", "read_babi", "simulate", "solve"]

PEOPLE = ("Mary", "John", "Daniel", "Sandra")
ROOMS = ("bathroom", "hallway", "garden", "office", "bedroom", "kitchen")
THINGS = ("football", "apple", "milk")
GO = ("moved to", "went to", "went back to", "journeyed to", "travelled to")
TAKE = ("got", "took", "grabbed", "picked up")
LEAVE = ("left", "dropped", "discarded", "put down")
STORY = {1: (2, 10), 2: (5, 20), 3: (10, 40)}  # facts of a simulated story, at least and at most
_GO, _TAKE, _LEAVE = ("|".join(verbs) for verbs in (GO, TAKE, LEAVE))
FACT = re.compile(
    rf"(\w+) (?:(?P<go>{_GO}) the (?P<room>\w+)|(?P<take>{_TAKE}) the (?P<got>\w+)(?: there)?|(?:{_LEAVE}) the (?P<left>\w+).*)\."
)
LONGEST = max(map(len, ROOMS))


class Question(NamedTuple):
    facts: tuple[str, ...]
    question: str
    answer: str
    support: tuple[int, ...] = ()  # the facts that decide it, where a file names them


class LongQuestion(NamedTuple):
    text: str  # ends in the question
    question: str
    answer: str
    n_facts: int


def read_babi(file: str | Path) -> list[Question]:
    """The questions of an official bAbI file (plain or .gz). Raises `InputError` where the file is missing or of another format."""
    path = Path(file)
    try:
        text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a bAbI file: {error}") from None
    questions: list[Question] = []
    facts: list[str] = []
    lines: dict[int, int] = {}  # line number -> fact
    for number, line in enumerate(text.splitlines(), start=1):
        parsed = re.fullmatch(r"(\d+) (.*)", line)
        if parsed is None:
            raise InputError(f"line {number} of {path} is no bAbI line (a number, then a sentence): {line[:60]!r}")
        place, sentence = int(parsed[1]), parsed[2]
        if place == 1:
            facts, lines = [], {}
        if "\t" not in sentence:
            lines[place] = len(facts)
            facts.append(sentence.strip())
            continue
        question, answer, *support = sentence.split("\t")
        deciding = tuple(lines[int(n)] for n in (support[0].split() if support else []) if int(n) in lines)
        questions.append(Question(tuple(facts), question.strip(), answer.strip(), deciding))
    if not questions:
        raise InputError(f"{path} holds no question; give an official bAbI file")
    return questions


def _follow(facts: tuple[str, ...]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The rooms that people, and things, have been in, in their order and without repetition; things that no one can place are absent."""
    people: dict[str, list[str]] = {}
    things: dict[str, list[str]] = {}
    carried: dict[str, str] = {}  # thing -> who
    for fact in facts:
        parsed = FACT.fullmatch(fact)
        if parsed is None:
            continue
        who = parsed[1]
        if parsed["room"]:
            _enter(people.setdefault(who, []), parsed["room"])
            for thing in (thing for thing, holder in carried.items() if holder == who):
                _enter(things.setdefault(thing, []), parsed["room"])
        elif parsed["got"]:
            carried[parsed["got"]] = who
            if people.get(who):
                _enter(things.setdefault(parsed["got"], []), people[who][-1])
        elif parsed["left"]:
            carried.pop(parsed["left"], None)
    return people, things


def _enter(trail: list[str], room: str) -> None:
    if not trail or trail[-1] != room:
        trail.append(room)


def solve(facts: tuple[str, ...], question: str) -> str:
    """The answer of a question of tasks 1 to 3, found by following its story; "" where the story does not tell."""
    people, things = _follow(facts)
    if before := re.fullmatch(r"Where was the (\w+) before the (\w+)\?", question):
        trail = things.get(before[1], [])
        last = max((i for i, room in enumerate(trail) if room == before[2]), default=0)
        return trail[last - 1] if last else ""
    if asked := re.fullmatch(r"Where is (the )?(\w+)\?", question):
        trail = (things if asked[1] else people).get(asked[2], [])
        return trail[-1] if trail else ""
    raise InputError(f"the question {question!r} is of no task from 1 to 3")


def simulate(qa: int, chance: random.Random, *, at_most: int | None = None) -> Question:
    """A story, of `at_most` facts where that is given, and a question of task `qa` (1 to 3)."""
    pick, (least, most) = chance.choice, STORY[qa]
    most = most if at_most is None else max(2 * qa, min(most, at_most))  # what is carried was taken somewhere and went elsewhere
    while True:
        n_facts = chance.randint(min(least, most), most)
        place: dict[str, str] = {}
        lies: dict[str, str] = {}  # thing -> room where it was left
        holds: dict[str, str] = {}  # thing -> who
        facts: list[str] = []
        while len(facts) < n_facts:
            who = pick(PEOPLE)
            mine = [thing for thing, holder in holds.items() if holder == who]
            free = [t for t in THINGS if t not in holds and lies.get(t, place.get(who)) == place.get(who)] if who in place else []
            act = chance.random() if qa > 1 else 1.0
            if act < 0.2 and free:
                thing = pick(free)
                holds[thing] = who
                facts.append(f"{who} {pick(TAKE)} the {thing}{' there' if qa == 2 or chance.random() < 0.2 else ''}.")
            elif act < 0.35 and mine:
                thing = pick(mine)
                lies[thing] = place[who]
                del holds[thing]
                facts.append(f"{who} {pick(LEAVE)} the {thing}{' there' if chance.random() < 0.2 else ''}.")
            else:
                place[who] = pick([room for room in ROOMS if room != place.get(who)])
                facts.append(f"{who} {pick(GO)} the {place[who]}.")
        if can_ask := askable(qa, tuple(facts)):
            return Question(tuple(facts), *pick(can_ask))


def askable(qa: int, facts: tuple[str, ...]) -> list[tuple[str, str]]:
    """(question, answer) of everything that task `qa` (1 to 3) can ask after `facts`."""
    people, things = _follow(facts)
    if qa == 1:
        return [(f"Where is {who}?", trail[-1]) for who, trail in sorted(people.items())]
    if qa == 2:
        return [(f"Where is the {thing}?", trail[-1]) for thing, trail in sorted(things.items())]
    return [
        (f"Where was the {thing} before the {room}?", trail[i - 1])
        for thing, trail in sorted(things.items())
        for i, room in enumerate(trail)
        if i and room not in trail[i + 1 :]  # the last time it was there
    ]


def is_right(said: str, asked: LongQuestion | Question) -> bool:
    """BABILong's score for tasks 1 to 3: the rooms in the first sentence of what was said, less those of the question, are the answer.

    >>> is_right("It is in the garden. Or the office.", Question((), "Where is Mary?", "garden"))
    True
    """
    first = re.split(r"[.\n]", said.strip().lower(), maxsplit=1)[0]
    return {room for room in ROOMS if room in first and room not in asked.question} == {asked.answer}


@dataclass(frozen=True, kw_only=True)
class BabiTask(Task):
    """Tokens are bytes. `labels[:, i]` is the byte after `inputs[:, i]`, at the answer and the full stop that ends it.

    `n_chars` counts story, background, question and answer. Without room for background the facts stand alone.
    """

    name: ClassVar[str] = "babi"
    source: ClassVar[str] = "arXiv:2406.10149"

    qa: int = 1  # 1, 2 or 3
    n_chars: int = 1024
    n_facts: int | None = None  # at most; None: as many as the story has
    file: str | None = None  # the text between the facts; None: Python's own documentation

    def __post_init__(self) -> None:
        if self.qa not in STORY:
            raise ConfigError(f"qa={self.qa} has no simulator; use 1, 2 or 3, or read an official file with read_babi")
        if self.n_facts is not None and self.n_facts < STORY[self.qa][0]:
            raise ConfigError(f"n_facts={self.n_facts} is too few for a story of task {self.qa}; use {STORY[self.qa][0]} or more")

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def length(self) -> int:
        return self.n_chars - 1

    @property
    def chance(self) -> float:
        """Of the bytes asked: the letters that the likeliest room continues with, the rest of a room once it is told apart."""
        return _spelled()

    def prompts(self, n: int, seed: int, split: str = "train") -> list[LongQuestion]:
        """`n` texts that end in the question, each with its answer."""
        chance = dice(self.generator(seed, split))
        return [self._write(chance) for _ in range(n)]

    def _story(self, chance: random.Random) -> Question:
        while True:
            story = simulate(self.qa, chance)
            if self.n_facts is None or len(story.facts) <= self.n_facts:
                return story

    def _write(self, chance: random.Random) -> LongQuestion:
        story = self._story(chance)
        room = self.n_chars - len(story.question) - len(story.answer) - 2 - sum(len(fact) + 1 for fact in story.facts)
        if room < 0:
            raise ConfigError(
                f"n_chars={self.n_chars} has no room for a story of {len(story.facts)} facts;"
                f" use {self.n_chars - room} or more, or fewer facts by n_facts"
            )
        between = fit(sentences_of(self.file), room, chance)
        gaps = sorted(chance.choices(range(len(between) + 1), k=len(story.facts)))
        for gap, fact in reversed(list(zip(gaps, story.facts, strict=True))):
            between.insert(gap, fact)
        return LongQuestion(f"{' '.join(between)}\n{story.question}", story.question, story.answer, len(story.facts))

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        chance = dice(generator)
        prompts = [self._write(chance) for _ in range(batch_size)]
        text = "".join(f"{prompt.text} {prompt.answer}." for prompt in prompts)
        tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).view(batch_size, self.n_chars).long()
        inputs, labels = tokens[:, :-1].clone(), tokens[:, 1:].clone()
        n_asked = torch.tensor([len(prompt.answer) + 2 for prompt in prompts])
        labels[torch.arange(self.length) < self.length - n_asked[:, None]] = IGNORE
        return Batch(inputs, labels, {"facts": torch.tensor([prompt.n_facts for prompt in prompts])})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        for row, tokens in zip(said, inputs.tolist(), strict=True):
            story, _, question = bytes(tokens).decode().rpartition("\n")
            question = question[: question.index("?") + 1]
            facts = tuple(match[0] for match in re.finditer(FACT.pattern.replace(".*", "(?: there)?"), story))
            answer = f" {solve(facts, question)}.".encode()
            row[len(row) - len(answer) :] = torch.tensor(list(answer))
        return said


@cache
def _spelled() -> float:
    """The share of bytes told by the likeliest continuation, of a room drawn evenly: a space, its letters, a full stop."""
    words = [f" {room}." for room in ROOMS]
    best: dict[str, dict[str, int]] = {}
    for word in words:
        for end in range(len(word)):
            counts = best.setdefault(word[:end], {})
            counts[word[end]] = counts.get(word[end], 0) + 1
    return sum(max(counts.values()) for counts in best.values()) / sum(map(len, words))

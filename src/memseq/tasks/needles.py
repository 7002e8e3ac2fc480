"""Needles in a haystack: facts hidden in a long text, asked for at its end; and variables that are given one another's value.

Source: RULER (Hsieh et al., arXiv:2404.06654). Tokens are bytes, so that no vocabulary helps or hinders.

    NeedleTask     instruction, haystack with needles, question, answer
                   needle: "One of the special magic numbers for amber-anchor is: 8231946."
    VariableTask   instruction, haystack with assignments, question, answer
                   "VAR KRW = 41902."  ...  "VAR PLA = VAR KRW."  ...  which variables are 41902?

    RULER's name        haystack     n_keys n_values n_asked  value
    niah_single_1/2/3   repeat, text, text   1  1  1          number, number, uuid
    niah_multikey_1     text                 4  1  1          number
    niah_multikey_2     needles              -  1  1          number
    niah_multivalue     text                 1  4  1          number
    niah_multiquery     text                 4  1  4          number

Haystacks: one short text over and over ("repeat"), other needles ("needles"), or prose: a file, or the documentation that comes with
Python. Needles stand between its sentences, at depths drawn without replacement from forty.

    sample     rectangular batches for training, next-token prediction: labels[:, i] is the byte after inputs[:, i], at the answer
               and the full stop that ends it. Every text is `n_chars` long: the haystack is cut to fit.
    prompts    the texts without their answers, for models that generate; `found` is RULER's score of what was said.
"""

import random
import re
import uuid
from dataclasses import dataclass
from itertools import pairwise, product
from string import ascii_uppercase
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.prose import dice, fit, sentences_of, split_sentences
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["NeedleTask", "TextPrompt", "VariableTask", "found"]

REPEATED = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = re.findall(
    r"\w+",
    "amber brisk calm dusty eager faint gentle hollow icy jolly keen lively mellow narrow odd pale quiet rapid silent tidy upper vivid"
    " wild young",
)
NOUNS = re.findall(
    r"\w+",
    "anchor basket candle desert engine feather garden hammer island jacket kettle lantern meadow needle orchard pencil quarry ribbon"
    " saddle timber umbrella valley window yarn",
)
WORDS = [f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in NOUNS]
NAMES = [name for name in map("".join, product(ascii_uppercase, repeat=3)) if name != "VAR"]
DEPTHS = 40  # RULER's grid


class TextPrompt(NamedTuple):
    text: str
    answers: tuple[str, ...]  # all of them are to be said
    depth: int  # of the first answer in the haystack, per cent


def found(said: str, answers: tuple[str, ...]) -> float:
    """The share of the answers that occur in what a model said, whatever the case.

    >>> found("They are 12 and 7.", ("12", "99"))
    0.5
    """
    return sum(answer.lower() in said.lower() for answer in answers) / len(answers)


@dataclass(frozen=True, kw_only=True)
class _HiddenTask(Task):
    """What the two tasks share: a text of `n_chars` bytes around what is hidden, and its answer as labels."""

    n_chars: int = 1024  # of instruction, haystack, question and answer
    haystack: str = "repeat"
    file: str | None = None  # prose for haystack="text"; None: Python's own documentation

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def length(self) -> int:
        return self.n_chars - 1

    def _compose(self, chance: random.Random) -> tuple[str, list[str], str, tuple[str, ...], list[str]]:
        """Instruction, what is hidden, question, answers, and more hidden lines that may fill a haystack."""
        raise TypeError(f"{type(self).__name__} must define _compose(chance)")

    def answer_in(self, text: str) -> tuple[str, ...]:
        """The answers, found in a text that ends in its question."""
        raise TypeError(f"{type(self).__name__} must define answer_in(text)")

    def prompts(self, n: int, seed: int, split: str = "train") -> list[TextPrompt]:
        """`n` texts that end in the question, each with its answers."""
        chance = dice(self.generator(seed, split))
        return [self._write(chance)[0] for _ in range(n)]

    def _write(self, chance: random.Random) -> tuple[TextPrompt, str]:
        """A text and its answer, `n_chars` long together."""
        instruction, hidden, question, answers, others = self._compose(chance)
        answer = f" {', '.join(answers)}."
        room = self.n_chars + 1 - len(f"{instruction}\n\n{question}{answer}") - sum(len(line) + 1 for line in hidden)  # spaces between
        if room < 1:
            raise ConfigError(f"n_chars={self.n_chars} has no room for a haystack; use {self.n_chars - room + 1} or more")
        sentences = fit(self._pool(others), room, chance if self.haystack == "text" else None)
        grid = sorted(chance.sample(range(DEPTHS), len(hidden)))
        n_sentences = len(sentences)
        for depth, line in reversed(list(zip(grid, hidden, strict=True))):
            sentences.insert(round(depth / (DEPTHS - 1) * n_sentences), line)
        place = next(depth for depth, line in zip(grid, hidden, strict=True) if any(answer in line for answer in answers))
        text = f"{instruction}\n{' '.join(sentences)}\n{question}"
        return TextPrompt(text, answers, 10 * round(10 * place / (DEPTHS - 1))), answer

    def _pool(self, others: list[str]) -> tuple[str, ...]:
        """The sentences of the haystack."""
        match self.haystack:
            case "needles":
                return tuple(others)
            case "repeat":
                return tuple(split_sentences(REPEATED))
            case _:
                return sentences_of(self.file)

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        chance = dice(generator)
        written = [self._write(chance) for _ in range(batch_size)]
        text = "".join(prompt.text + answer for prompt, answer in written)
        tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).view(batch_size, self.n_chars).long()
        inputs, labels = tokens[:, :-1].clone(), tokens[:, 1:].clone()
        n_asked = torch.tensor([len(answer) for _, answer in written])
        labels[torch.arange(self.length) < self.length - n_asked[:, None]] = IGNORE
        return Batch(inputs, labels, {"depth": torch.tensor([prompt.depth for prompt, _ in written])})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        said = torch.zeros_like(inputs)
        for row, tokens in zip(said, inputs.tolist(), strict=True):
            text = bytes(tokens).decode()
            answer = f" {', '.join(self.answer_in(text))}.".encode()
            row[len(row) - len(answer) :] = torch.tensor(list(answer))
        return said


@dataclass(frozen=True, kw_only=True)
class NeedleTask(_HiddenTask):
    """Keys and their values in a haystack; the values of some keys are asked for."""

    name: ClassVar[str] = "needle"
    source: ClassVar[str] = "arXiv:2404.06654"

    haystack: Literal["repeat", "text", "needles"] = "repeat"
    value: Literal["number", "word", "uuid"] = "number"
    n_keys: int = 1
    n_values: int = 1  # of each key
    n_asked: int = 1  # keys

    def __post_init__(self) -> None:
        if not 1 <= self.n_asked <= self.n_keys or self.n_values < 1:
            raise ConfigError(f"n_asked={self.n_asked} of n_keys={self.n_keys} with n_values={self.n_values} each makes no question")
        if self.n_keys * self.n_values > DEPTHS:
            raise ConfigError(f"n_keys x n_values = {self.n_keys * self.n_values} needles have only {DEPTHS} depths; use fewer")

    @property
    def chance(self) -> float:
        """Of the bytes asked: nothing but the separators can be known without reading, and digits are guessed."""
        if self.value != "number":
            raise ConfigError("the chance of guessing is known for value='number' alone")
        n = self.n_asked * self.n_values
        asked = n * (1 + 7 + 1)  # space, digits, comma or full stop
        return n * (2 + 1 / 9 + 6 / 10) / asked

    def _value(self, chance: random.Random) -> str:
        match self.value:
            case "number":
                return str(chance.randrange(10**6, 10**7))
            case "word":
                return chance.choice(WORDS)
            case _:
                return str(uuid.UUID(bytes=chance.randbytes(16), version=4))

    def _needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.value}s for {key} is: {value}."

    def _compose(self, chance: random.Random) -> tuple[str, list[str], str, tuple[str, ...], list[str]]:
        n_others = self.n_chars // 40 if self.haystack == "needles" else 0
        keys = chance.sample(WORDS, self.n_keys + min(n_others, len(WORDS) - self.n_keys))
        keys, others = keys[: self.n_keys], keys[self.n_keys :]
        values = [[self._value(chance) for _ in range(self.n_values)] for _ in keys]
        hidden = [(key, value) for key, own in zip(keys, values, strict=True) for value in own]
        chance.shuffle(hidden)
        asked = chance.sample(keys, self.n_asked)
        answers = tuple(value for key in asked for name, value in hidden if name == key)
        lines = [self._needle(key, value) for key, value in hidden]
        noise = [self._needle(key, self._value(chance)) for key in others]
        instruction = f"Special magic {self.value}s are hidden in this text. Remember them: they will be asked for."
        question = f"What are the special magic {self.value}s for {' and '.join(asked)}? They are"
        return instruction, lines, question, answers, noise

    def answer_in(self, text: str) -> tuple[str, ...]:
        asked = re.findall(rf"What are the special magic {self.value}s for (.*?)\? They are", text)[-1].split(" and ")
        pairs = re.findall(rf"One of the special magic {self.value}s for (\S+) is: (\S+?)\.", text)
        return tuple(value for key in asked for name, value in pairs if name == key)


@dataclass(frozen=True, kw_only=True)
class VariableTask(_HiddenTask):
    """Chains of variables, each given the value of the one before; all of one chain are asked for."""

    name: ClassVar[str] = "variable_tracking"
    source: ClassVar[str] = "arXiv:2404.06654"

    haystack: Literal["repeat", "text"] = "repeat"
    n_chains: int = 1
    n_hops: int = 4  # assignments after the first

    def __post_init__(self) -> None:
        if self.n_chains < 1 or self.n_hops < 0:
            raise ConfigError(f"n_chains={self.n_chains} of n_hops={self.n_hops} hide nothing; use at least 1 of 0")
        if self.n_chains * (self.n_hops + 1) > DEPTHS:
            raise ConfigError(f"{self.n_chains * (self.n_hops + 1)} assignments have only {DEPTHS} depths; use fewer")

    @property
    def chance(self) -> float:
        """Of the bytes asked: separators are known, three letters a name are guessed."""
        n = self.n_hops + 1
        return n * (2 + 3 / 26) / (n * 5)

    def _compose(self, chance: random.Random) -> tuple[str, list[str], str, tuple[str, ...], list[str]]:
        n = self.n_hops + 1
        names = chance.sample(NAMES, n * self.n_chains)
        values = [str(number) for number in chance.sample(range(10_000, 100_000), self.n_chains)]
        chains = [names[i * n : (i + 1) * n] for i in range(self.n_chains)]
        queues = [
            [f"VAR {own[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(own))]
            for own, value in zip(chains, values, strict=True)
        ]
        turns = [chain for chain in range(self.n_chains) for _ in range(n)]
        chance.shuffle(turns)
        lines = [queues[chain].pop(0) for chain in turns]  # chains are interleaved, each in its own order
        asked = chance.randrange(self.n_chains)
        instruction = "Variables are assigned in this text. Remember their values: they will be asked for."
        question = f"Which variables are {values[asked]}? They are"
        return instruction, lines, question, tuple(chains[asked]), []

    def answer_in(self, text: str) -> tuple[str, ...]:
        value = re.findall(r"Which variables are (\d+)\? They are", text)[-1]
        held: dict[str, str] = {}
        for name, source in re.findall(r"VAR ([A-Z]{3}) = (?:VAR )?(\w+)\.", text):
            held[name] = held.get(source, source)
        return tuple(name for name, own in held.items() if own == value)

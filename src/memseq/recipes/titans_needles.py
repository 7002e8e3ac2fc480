"""Needles by Titans' memory: trained on texts of one length, asked on texts 4 and 16 times as long.

Source: the single-needle tasks of RULER (Hsieh et al., arXiv:2404.06654) as Titans (Behrouz et al., arXiv:2501.00663) asks them.

    python -m memseq.recipes.titans_needles --json results.json
    python -m memseq.recipes.titans_needles --part practised --json results.json

    passkey    a number of seven digits in one sentence or two over and over
    number     the same in prose
    short      a number of three digits in prose
    word       one of 576 pairs of words in prose

Tokens are bytes. A line "key: value." stands somewhere in the haystack, and the text ends in "key:", from which the value is to be
said. That is shorter than RULER's sentences around it, of which a model this small learns nothing in minutes. One model is trained on
all three kinds. What comes first, for every contender, is a text that is nothing but one such line over and over, where every byte is
asked: that is where reading back is learned. In such lines most bytes are known without reading, so that a number is hardly learned:
practised (`--part practised`) are strings of digits over and over, before and in between (or they are forgotten at the first line), and of
lines the value alone; numbers have 2 to 7 digits until they are asked.

Two blocks of width 64 and about the same bytes of state: the matrices of Gated DeltaNet, weights and momentum of Titans' memory (a
matrix, L_M = 1 in the paper), the same under MAG with a window of 16 tokens more, and a window of 20 tokens in each of two blocks alone.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.stack import StackConfig
from memseq.models.titans_mag import MAG
from memseq.recipes.fitting import Table, facts, fit
from memseq.recipes.machine import keep_freed_memory
from memseq.tasks.needles import WORDS, NeedleTask
from memseq.tasks.prose import dice
from memseq.tasks.task import IGNORE, Batch

__all__ = [
    "PARTS",
    "NeedlesRun",
    "RepeatedDigitsTask",
    "RepeatedLineTask",
    "RepeatedValueTask",
    "ShortNeedleTask",
    "Stage",
    "asked",
    "contenders",
    "kinds",
    "main",
    "run",
]

D = 64
LENGTH = 128  # bytes of a text in training


@dataclass(frozen=True, kw_only=True)
class ShortNeedleTask(NeedleTask):
    """A needle "key: value.", asked for by "key:"."""

    name: ClassVar[str] = "short needle"

    digits: tuple[int, int] = (7, 7)  # of a number, from and to

    def _value(self, chance: Random) -> str:
        return _number(chance, self.digits) if self.value == "number" else super()._value(chance)

    def _compose(self, chance: Random) -> tuple[str, list[str], str, tuple[str, ...], list[str]]:
        key, value = chance.choice(WORDS), self._value(chance)
        return "", [f"{key}: {value}."], f"{key}:", (value,), []

    def answer_in(self, text: str) -> tuple[str, ...]:
        key = text.rpartition("\n")[2].partition(":")[0]
        return (text.partition(f"{key}: ")[2].partition(".")[0],)


@dataclass(frozen=True, kw_only=True)
class RepeatedLineTask(NeedleTask):
    """One needle again and again; every byte from the second time on is asked."""

    name: ClassVar[str] = "repeated line"

    digits: tuple[int, int] = (7, 7)

    def _value(self, chance: Random) -> str:
        return _number(chance, self.digits) if self.value == "number" else super()._value(chance)

    def _line(self, chance: Random) -> str:
        task = replace(self, value=chance.choice(("number", "number", "word")))
        return f"{chance.choice(WORDS)}: {task._value(chance)}. "

    def _asks(self, line: str, place: int) -> bool:
        return True

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        chance = dice(generator)
        lines = [self._line(chance) for _ in range(batch_size)]
        text = "".join((line * self.n_chars)[: self.n_chars] for line in lines)
        tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).view(batch_size, self.n_chars).long()
        labels = torch.full_like(tokens, IGNORE)
        for row, line in enumerate(lines):
            for at in range(len(line), self.n_chars):
                if self._asks(line, at % len(line)):
                    labels[row, at] = tokens[row, at]
        return Batch(tokens[:, :-1].clone(), labels[:, 1:], {})


@dataclass(frozen=True, kw_only=True)
class RepeatedValueTask(RepeatedLineTask):
    """One needle again and again, of which only the value is asked: the rest is known without reading."""

    name: ClassVar[str] = "repeated value"

    def _asks(self, line: str, place: int) -> bool:
        return place > line.index(":") + 1 and line[place] not in ". "


@dataclass(frozen=True, kw_only=True)
class RepeatedDigitsTask(RepeatedLineTask):
    """A string of 4 to 10 digits again and again: nothing is known but what was read."""

    name: ClassVar[str] = "repeated digits"

    def _line(self, chance: Random) -> str:
        return "".join(chance.choices("0123456789", k=chance.randint(4, 10)))


def _number(chance: Random, digits: tuple[int, int]) -> str:
    n = digits[0] if digits[0] == digits[1] else chance.randint(*digits)
    return str(chance.randrange(10 ** (n - 1), 10**n))


class Stage(NamedTuple):
    steps: int
    of: Literal["digits", "values", "lines", "needles"]  # all but the last over and over
    n_chars: int
    digits: tuple[int, int] = (7, 7)  # of numbers, from and to
    practice: int = 0  # every so many steps digits over and over; 0: never

    def task(self, step: int) -> NeedleTask:
        if self.practice and step % self.practice == 0:
            return RepeatedDigitsTask(n_chars=40)
        match self.of:
            case "digits":
                return RepeatedDigitsTask(n_chars=self.n_chars)
            case "values":
                return RepeatedValueTask(n_chars=self.n_chars, digits=self.digits)
            case "lines":
                return RepeatedLineTask(n_chars=self.n_chars, digits=self.digits)
        return list(kinds(self.n_chars, self.digits).values())[step % 3]


PARTS = {
    "at once": (Stage(180, "lines", 80), Stage(180, "needles", 80), Stage(140, "needles", LENGTH)),
    "practised": (
        Stage(200, "digits", 40),
        Stage(240, "values", 48, (2, 7), practice=2),
        Stage(240, "needles", 80, (2, 7), practice=4),
        Stage(180, "needles", LENGTH, (2, 7)),
    ),
}


@dataclass(frozen=True, kw_only=True)
class NeedlesRun:
    """One training."""

    name: str
    memory: Any
    lr: float = 1.5e-2
    stages: tuple[Stage, ...] = PARTS["at once"]
    batch_size: int = 32
    asked: int = 64  # texts of a kind and length
    lengths: tuple[int, ...] = (LENGTH, 4 * LENGTH, 16 * LENGTH)


def contenders() -> list[NeedlesRun]:
    memory = TitansConfig(d_model=D, n_heads=4, segment_length=8, depth=1, step=0.3, momentum=0.3)
    return [
        NeedlesRun(name="Gated DeltaNet", memory=GatedDeltaNetConfig(d_model=D, n_heads=2)),
        NeedlesRun(name="Titans LMM", memory=memory),
        NeedlesRun(name="Titans MAG", memory=MAG(d_model=D, n_persistent=8, memory=memory, n_heads=4, window=16)),
        NeedlesRun(name="sliding window", memory=SlidingWindowConfig(d_model=D, n_heads=4, window=20), lr=5e-3),
    ]


def kinds(n_chars: int, digits: tuple[int, int] = (7, 7)) -> dict[str, ShortNeedleTask]:
    """The three tasks that are trained, in texts of `n_chars` bytes, with numbers of `digits`."""
    return {
        "passkey": ShortNeedleTask(n_chars=n_chars, haystack="repeat", digits=digits),
        "number": ShortNeedleTask(n_chars=n_chars, haystack="text", digits=digits),
        "word": ShortNeedleTask(n_chars=n_chars, haystack="text", value="word"),
    }


def asked(n_chars: int) -> dict[str, ShortNeedleTask]:
    """What is asked in texts of `n_chars` bytes."""
    return kinds(n_chars) | {"short": ShortNeedleTask(n_chars=n_chars, haystack="text", digits=(3, 3))}


def run(what: NeedlesRun, *, seed: int = 0) -> dict[str, Any]:
    """Train, then ask. Seconds are of this process's processor time."""
    torch.manual_seed(seed)
    steps = [stage for stage in what.stages for _ in range(stage.steps)]
    model = StackConfig(vocab_size=256, d_model=D, layers=2 * (what.memory,), ff_mult=2.0).build()

    def loss(step: int) -> Tensor:
        batch = steps[step - 1].task(step).sample(what.batch_size, seed=step + 1_000_000 * seed)
        total, count, _ = model.loss(batch.inputs, batch.labels, model.init_state(what.batch_size))
        return total / count

    seconds = fit(model, loss, steps=len(steps), lr=what.lr)
    told = facts(model, name=what.name, seed=seed, steps=len(steps), lr=what.lr, seconds=seconds, read=64)
    right = {str(n): {kind: said_right(model, task, rows=what.asked) for kind, task in asked(n).items()} for n in what.lengths}
    return told | {"right": right}


@torch.no_grad()
def said_right(model: Any, task: NeedleTask, *, rows: int) -> dict[str, float]:
    """The share of answers said whole, and of their bytes. Whole: the likeliest byte is right everywhere, as greedy generation needs."""
    batch = task.sample(rows, seed=0, split="test")
    said = model(batch.inputs, model.init_state(rows))[0].argmax(-1)
    scored = batch.labels != IGNORE
    right = (said == batch.labels) | ~scored
    return {"answers": round(right.all(1).float().mean().item(), 4), "bytes": round(right[scored].float().mean().item(), 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Titans: needles in texts of 1, 4 and 16 times the length of those in training.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of each row (default 0 1)")
    parser.add_argument("--part", choices=PARTS, default="at once", help="how numbers are taught (default 'at once')")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--json", help="write the rows to this file, each as it is measured; what it holds is not repeated")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    table = Table("python -m memseq.recipes.titans_needles", given.json, length=LENGTH)
    done = {(row["part"], row["name"], row["seed"]) for row in table.rows}
    for seed in given.seeds:
        for what in contenders():
            if given.only in what.name and (given.part, what.name, seed) not in done:
                table.add(part=given.part, **run(replace(what, stages=PARTS[given.part]), seed=seed))


if __name__ == "__main__":
    main()

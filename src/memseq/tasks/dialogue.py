"""A dialogue of many turns: each tells one thing and asks for one that was told a few turns ago, so that it never ends and never repeats.

Source: the question of MemBART (Wu & Yu, arXiv:2209.07634), a model that reads the last turns and must remember the others, in its
smallest form; the layout is this library's.

    turn t     chatter ... [key = value] ... chatter  [key' ?]         label at [key' ?]: the value that key' was given last

A fact is one token, anywhere among the chatter, and so is a question, so that nobody has to learn first to bind neighbours. Key' was
told `age` turns before, age < reach, drawn evenly among those of the turns that there are. A key is not told again within `reach` turns,
and later it may be, with another value: who keeps everything must also forget.

`n_facts` of a turn: with one, who keeps the last value without its key is right about the turn before, which has told nothing else; with
more a value is worth nothing without its key. With reach 3 and three facts, as with reach 9 and one, nine are kept.

What a player knows who reads the last w turns only: ages below w, and for the rest nothing, 1 / n_values.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["DialogueTask"]


@dataclass(frozen=True, kw_only=True)
class DialogueTask(Task):
    """Tokens: facts (n_values of key 0, of key 1, ...), questions, values, chatter.

    `slices["age"]`: how many turns ago a thing was told.
    """

    name: ClassVar[str] = "dialogue"
    source: ClassVar[str] = "arXiv:2209.07634"

    n_turns: int = 12
    reach: int = 10  # turns back that are asked for, this one included
    n_facts: int = 1  # things that a turn tells
    n_chatter: int = 2  # tokens of a turn that say nothing
    n_keys: int = 16
    n_values: int = 16
    n_words: int = 8  # kinds of chatter

    def __post_init__(self) -> None:
        for field, low in (("n_turns", 1), ("reach", 1), ("n_facts", 1), ("n_chatter", 0), ("n_values", 2), ("n_words", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; use {low} or more")
        if self.n_keys < self.reach * self.n_facts:
            raise ConfigError(
                f"n_keys={self.n_keys} cannot be distinct over reach={self.reach} turns of n_facts={self.n_facts};"
                f" use n_keys={self.reach * self.n_facts} or more, or a smaller reach"
            )

    @property
    def turn_length(self) -> int:
        return self.n_facts + self.n_chatter + 1

    @property
    def questions(self) -> int:
        """The first token of those that ask, and the number of facts."""
        return self.n_keys * self.n_values

    @property
    def values(self) -> int:
        """The first token of those that answer."""
        return self.questions + self.n_keys

    @property
    def vocab_size(self) -> int:
        return self.values + self.n_values + self.n_words

    @property
    def length(self) -> int:
        return self.turn_length * self.n_turns

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, T, F, u = batch_size, self.n_turns, self.n_facts, self.turn_length
        keys = torch.empty(B, T, F, dtype=torch.int64)
        for t in range(T):
            order = torch.rand(B, self.n_keys, generator=generator)
            order.scatter_(1, keys[:, max(0, t - self.reach + 1) : t].flatten(1), -1.0)  # told too lately
            keys[:, t] = order.topk(F, dim=1).indices
        values = torch.randint(self.n_values, (B, T, F), generator=generator)
        turn = torch.arange(T)
        age = (torch.rand(B, T, generator=generator) * (turn + 1).clamp(max=self.reach)).long()
        told = (turn - age) * F + torch.randint(F, (B, T), generator=generator)  # which fact of all is asked for
        said = self.values + self.n_values + torch.randint(self.n_words, (B, T, u), generator=generator)
        places = torch.rand(B, T, u - 1, generator=generator).topk(F, dim=-1).indices
        said.scatter_(2, places, keys * self.n_values + values)
        said[..., -1] = self.questions + keys.flatten(1).gather(1, told)
        inputs = said.flatten(1)
        labels, ages = torch.full_like(inputs, IGNORE), torch.full_like(inputs, -1)
        labels[:, u - 1 :: u] = self.values + values.flatten(1).gather(1, told)
        ages[:, u - 1 :: u] = age
        return Batch(inputs, labels, {"age": ages})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        return self.reading(inputs, self.n_turns)

    def reading(self, inputs: Int64[Tensor, "B T"], n_turns: int) -> Int64[Tensor, "B T"]:
        """A player that sees the last `n_turns` turns: right for what was told in them, and else it says the first value."""
        u, place = self.turn_length, torch.arange(inputs.shape[1])
        asked = inputs[:, u - 1 :: u, None] - self.questions
        turn = place // u
        asking = turn[::u, None]
        seen = (turn <= asking) & (turn > asking - n_turns)
        meant = (inputs < self.questions)[:, None] & (inputs[:, None] // self.n_values == asked) & seen
        told = torch.where(meant, place, -1).amax(-1)  # the latest
        said = torch.zeros_like(inputs)
        said[:, u - 1 :: u] = self.values + torch.where(told >= 0, inputs.gather(1, told.clamp_min(0)) % self.n_values, 0)
        return said

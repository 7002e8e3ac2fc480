"""Delayed meaning: names in phrases of random lengths; what a name means is said only at the end of its phrase, to its right.

Source: the case for which LaMemo (Ji et al., arXiv:2204.07341) lets what is remembered look at what came after it, as a task of this
library.

    story         a b c [x]  d [y]  e f g h [z]        n_names names, in n_phrases phrases, each ended by its meaning
    between       [nothing] ...                        n_between tokens
    asked         [d?] [f?] [a?] ...                   label at [d?]: y      `later`: tokens from d to its meaning

Names and meanings of a sample are distinct; where phrases end is drawn anew. A name and its meaning share nothing but their places, and
when a name is read its meaning is not known. A reader that keeps each name as it was when it came knows it beside the meaning of the phrase
before; the meaning of its own phrase, which came later, must have gathered all names since the last one. A memory that is refreshed with
what came after needs only the nearest meaning to the right.

A player without memory guesses among all meanings, 1 / n_meanings; one that knows which were shown, among those, 1 / n_phrases
(`among_shown`); one that always names the meaning of the longest phrase is right in 47 per cent of questions at the defaults.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["DelayedMeaningTask"]


@dataclass(frozen=True, kw_only=True)
class DelayedMeaningTask(Task):
    """Tokens: names 0 to n_kinds - 1, meanings, [nothing], names as they are asked for. A story is a segment."""

    name: ClassVar[str] = "delayed_meaning"
    source: ClassVar[str] = "arXiv:2204.07341"

    n_names: int = 12  # of a story
    n_phrases: int = 4
    n_asked: int = 12
    n_between: int = 0
    n_kinds: int = 32  # names there are
    n_meanings: int = 8  # meanings there are

    def __post_init__(self) -> None:
        for field, low in (("n_names", 1), ("n_phrases", 1), ("n_asked", 1), ("n_between", 0), ("n_meanings", 2)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; use {low} or more")
        for few, many in (("n_names", "n_kinds"), ("n_phrases", "n_meanings"), ("n_phrases", "n_names"), ("n_asked", "n_names")):
            if getattr(self, few) > getattr(self, many):
                raise ConfigError(
                    f"{few}={getattr(self, few)} is more than {many}={getattr(self, many)}; use {few}={getattr(self, many)} or less"
                )

    @property
    def vocab_size(self) -> int:
        return 2 * self.n_kinds + self.n_meanings + 1

    @property
    def segment_length(self) -> int:
        """Tokens of a story."""
        return self.n_names + self.n_phrases

    @property
    def length(self) -> int:
        return self.segment_length + self.n_between + self.n_asked

    @property
    def chance(self) -> float:
        return 1 / self.n_meanings

    @property
    def among_shown(self) -> float:
        """The accuracy of guessing among the meanings of the story."""
        return 1 / self.n_phrases

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, n, S = batch_size, self.n_names, self.segment_length
        names = choose_distinct(B, n, self.n_kinds, generator)
        meanings = self.n_kinds + choose_distinct(B, self.n_phrases, self.n_meanings, generator)
        borders = 1 + choose_distinct(B, self.n_phrases - 1, n - 1, generator)  # names before a phrase's end, the last end left out
        begins = torch.zeros(B, n + 1, dtype=torch.int64).scatter_(1, borders, 1)
        phrase = begins[:, :n].cumsum(1)  # of each name
        place = torch.arange(n) + phrase  # of each name in the story
        story = torch.full((B, S), -1).scatter_(1, place, names)
        story[story < 0] = meanings.flatten()
        last = torch.cat([borders.sort(dim=1).values, torch.full((B, 1), n)], dim=1) + torch.arange(self.n_phrases)  # places of meanings
        chosen = choose_distinct(B, self.n_asked, n, generator)
        answers = phrase.gather(1, chosen)
        asked = self.n_kinds + self.n_meanings + 1 + names.gather(1, chosen)
        inputs = torch.cat([story, torch.full((B, self.n_between), self.n_kinds + self.n_meanings), asked], dim=1)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, -self.n_asked :] = meanings.gather(1, answers)
        later = torch.full_like(inputs, -1)
        later[:, -self.n_asked :] = last.gather(1, answers) - place.gather(1, chosen)
        return Batch(inputs, labels, {"later": later})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        story, names = inputs[:, : self.segment_length], inputs - (self.n_kinds + self.n_meanings + 1)
        place = (story[:, None] == names[..., None]).int().argmax(-1)  # [B, T]
        meant = (story >= self.n_kinds)[:, None] & (torch.arange(self.segment_length) > place[..., None])
        return story.gather(1, meant.int().argmax(-1))

"""Topics that take turns: each tells what its keys mean to it, once; later some topics come back and are asked.

Source: the topic switching that HMT (He et al., arXiv:2405.06067) is made for, as a task of this library; a segment is a turn.

    told      words of topic g, and m facts among them               one segment for each of n_topics topics
    returns   words of topic g                                       n_before segments in which it is taken up again and nothing is asked
    asked     words of topic g ... [key 1 ?] ... [key m ?]           label at [key j ?]: its value under topic g

Returns and questions come after all that was told, for n_asked of the topics, each once. Every topic has words of its own, which is all
that tells what a segment is about. A fact is one token, "key j is v", at any place. The keys are the same under all topics, so that only
who brings back what the topic told can answer; without it there is a guess, 1 / n_values.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["TopicsTask"]


@dataclass(frozen=True, kw_only=True)
class TopicsTask(Task):
    """Tokens: words (n_words of topic 1, of topic 2, ...), facts (n_values of key 1, of key 2, ...), questions, values.

    `slices["told_in"]`: the segment that told what is asked, from 0.
    """

    name: ClassVar[str] = "topics"
    source: ClassVar[str] = "arXiv:2405.06067"

    n_topics: int = 8
    n_asked: int = 4
    n_before: int = 0
    segment_length: int = 8
    n_keys: int = 2  # m
    n_values: int = 16
    topics: int = 16  # that there are; n_topics of them are spoken of
    n_words: int = 2  # of a topic

    def __post_init__(self) -> None:
        for field, low in (("n_topics", 1), ("n_asked", 1), ("n_before", 0), ("n_keys", 1), ("n_values", 2), ("n_words", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; use {low} or more")
        if self.n_asked > self.n_topics:
            raise ConfigError(f"n_asked={self.n_asked} asks for more topics than the n_topics={self.n_topics} that were told")
        if self.n_topics > self.topics:
            raise ConfigError(f"topics={self.topics} are fewer than n_topics={self.n_topics}")
        if self.segment_length <= self.n_keys:
            raise ConfigError(
                f"a word and n_keys={self.n_keys} facts do not fit into segment_length={self.segment_length}; use {self.n_keys + 1} or more"
            )

    @property
    def facts(self) -> int:
        """The first token of those that tell."""
        return self.topics * self.n_words

    @property
    def questions(self) -> int:
        return self.facts + self.n_keys * self.n_values

    @property
    def values(self) -> int:
        return self.questions + self.n_keys

    @property
    def vocab_size(self) -> int:
        return self.values + self.n_values

    @property
    def n_segments(self) -> int:
        return self.n_topics + self.n_asked * (1 + self.n_before)

    @property
    def length(self) -> int:
        return self.n_segments * self.segment_length

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    @property
    def asking(self) -> list[int]:
        """The segments that ask."""
        return list(range(self.n_topics + self.n_before, self.n_segments, 1 + self.n_before))

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, G, L, m = batch_size, self.n_topics, self.segment_length, self.n_keys
        topics = choose_distinct(B, G, self.topics, generator)
        meant = torch.randint(self.n_values, (B, G, m), generator=generator)
        told_in = choose_distinct(B, self.n_asked, G, generator)
        about = torch.cat([topics, topics.gather(1, told_in).repeat_interleave(1 + self.n_before, dim=1)], dim=1)
        words = about[..., None] * self.n_words + torch.randint(self.n_words, (B, self.n_segments, L), generator=generator)
        places = torch.rand(B, G, L, generator=generator).argsort(-1)[..., :m]
        words[:, :G].scatter_(2, places, self.facts + torch.arange(m) * self.n_values + meant)
        words[:, self.asking, L - m :] = self.questions + torch.arange(m)
        labels, where = torch.full_like(words, IGNORE), torch.full_like(words, -1)
        labels[:, self.asking, L - m :] = self.values + meant.gather(1, told_in[..., None].expand(-1, -1, m))
        where[:, self.asking, L - m :] = told_in[..., None].expand(-1, -1, m)
        return Batch(words.flatten(1), labels.flatten(1), {"told_in": where.flatten(1)})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        words = inputs.unflatten(1, (self.n_segments, self.segment_length))
        about = words.where(words < self.facts, 0).amax(-1) // self.n_words
        same = about[:, self.asking, None] == about[:, None, : self.n_topics]
        told = words[:, : self.n_topics].take_along_dim(same.int().argmax(-1)[..., None], 1)  # for each question, the segment of its topic
        said = torch.zeros_like(words)
        for key in range(self.n_keys):
            first = self.facts + key * self.n_values
            fact = told.where((told >= first) & (told < first + self.n_values), 0).amax(-1)
            said[:, self.asking, self.segment_length - self.n_keys + key] = self.values + fact - first
        return said.flatten(1)

"""Topics that take turns: each tells what its keys mean to it, once; later some topics come back and are asked.

Source: the topic switching that HMT (He et al., arXiv:2405.06067) is made for, as a task of this library; a segment is a turn.

    told      [topic g] fact ... fact chatter ...             facts and chatter in any order; one segment for each of n_topics topics
    returns   [topic g] chatter ...                           n_before segments in which a topic is taken up again and nothing is asked
    asked     [topic g] chatter ... [key 1 ?] ... [key m ?]    label at [key j ?]: its value under topic g

Returns and questions come after all that was told, for n_asked of the topics, each once. A fact is one token, "key j is v". The keys are
the same under all topics, so that only who brings back the topic's own turn can answer; without it there is a guess, 1 / n_values.
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
    """Tokens: topics, facts (n_values of key 1, of key 2, ...), questions, values, chatter.

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
    topic_tokens: int = 16  # topics there are; n_topics of them are spoken of
    n_words: int = 8  # kinds of chatter

    def __post_init__(self) -> None:
        for field, low in (("n_topics", 1), ("n_asked", 1), ("n_before", 0), ("n_keys", 1), ("n_values", 2), ("n_words", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; use {low} or more")
        if self.n_asked > self.n_topics:
            raise ConfigError(f"n_asked={self.n_asked} asks for more topics than the n_topics={self.n_topics} that were told")
        if self.n_topics > self.topic_tokens:
            raise ConfigError(f"topic_tokens={self.topic_tokens} are fewer than n_topics={self.n_topics}")
        if self.segment_length <= self.n_keys:
            raise ConfigError(
                f"a topic and n_keys={self.n_keys} facts do not fit into segment_length={self.segment_length};"
                f" use {self.n_keys + 1} or more"
            )

    @property
    def facts(self) -> int:
        """The first token of those that tell."""
        return self.topic_tokens

    @property
    def questions(self) -> int:
        return self.facts + self.n_keys * self.n_values

    @property
    def values(self) -> int:
        return self.questions + self.n_keys

    @property
    def vocab_size(self) -> int:
        return self.values + self.n_values + self.n_words

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
        topics = choose_distinct(B, G, self.topic_tokens, generator)
        meant = torch.randint(self.n_values, (B, G, m), generator=generator)
        words = self.values + self.n_values + torch.randint(self.n_words, (B, self.n_segments, L), generator=generator)
        words[:, :G, 0] = topics
        places = 1 + torch.rand(B, G, L - 1, generator=generator).argsort(-1)[..., :m]
        words[:, :G].scatter_(2, places, self.facts + torch.arange(m) * self.n_values + meant)
        told_in = choose_distinct(B, self.n_asked, G, generator)
        words[:, G:, 0] = topics.gather(1, told_in).repeat_interleave(1 + self.n_before, dim=1)
        words[:, self.asking, L - m :] = self.questions + torch.arange(m)
        labels, where = torch.full_like(words, IGNORE), torch.full_like(words, -1)
        labels[:, self.asking, L - m :] = self.values + meant.gather(1, told_in[..., None].expand(-1, -1, m))
        where[:, self.asking, L - m :] = told_in[..., None].expand(-1, -1, m)
        return Batch(words.flatten(1), labels.flatten(1), {"told_in": where.flatten(1)})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        words = inputs.unflatten(1, (self.n_segments, self.segment_length))
        told, asked = words[:, : self.n_topics], words[:, self.asking]
        same = asked[:, :, None, 0] == told[:, None, :, 0]
        told = told.take_along_dim(same.int().argmax(-1)[..., None], 1)  # for each question, the segment of its topic
        said = torch.zeros_like(words)
        for key in range(self.n_keys):
            first = self.facts + key * self.n_values
            fact = told.where((told >= first) & (told < first + self.n_values), 0).amax(-1)
            said[:, self.asking, self.segment_length - self.n_keys + key] = self.values + fact - first
        return said.flatten(1)

"""Interleaved recall: several streams of keys and values in one, each token triple marked by its topic; the same keys mean other values.

Source: the interference that Mixture-of-Memories (Du et al., arXiv:2502.13685) is made against, as a task of this library.

    shown     [topic g] k v  [topic h] k' v'  ...      n_pairs of each topic, all in one random order
    asked     [topic g] k    ...                       label at k: the value of k under topic g

Keys are drawn for each topic apart, from the same few, so that a key alone does not tell its value. With n_topics=1 it is the single
stream that the others are compared with: as many pairs of a topic, and as many questions.

A player without memory guesses among all values, 1 / n_values.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["InterleavedRecallTask"]


@dataclass(frozen=True, kw_only=True)
class InterleavedRecallTask(Task):
    """Tokens: topics 0 to n_topics - 1, then keys, then values."""

    name: ClassVar[str] = "interleaved_recall"
    source: ClassVar[str] = "arXiv:2502.13685"

    n_topics: int = 4
    n_pairs: int = 8  # of each topic
    n_asked: int = 8  # questions, of all topics together
    n_keys: int = 16  # keys that topics share
    n_values: int = 16
    topic_tokens: int | None = None  # topics of the vocabulary, so that models of one shape read one topic or many; None: n_topics

    def __post_init__(self) -> None:
        for field, low in (("n_topics", 1), ("n_pairs", 1), ("n_asked", 1), ("n_values", 2)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field}={getattr(self, field)} is too small; use {low} or more")
        if self.n_keys < self.n_pairs:
            raise ConfigError(
                f"n_keys={self.n_keys} cannot be n_pairs={self.n_pairs} distinct keys of a topic; use at least {self.n_pairs}"
            )
        if self.n_asked > self.n_topics * self.n_pairs:
            raise ConfigError(f"n_asked={self.n_asked} asks for more pairs than the {self.n_topics * self.n_pairs} that are shown")
        if self._topics < self.n_topics:
            raise ConfigError(f"topic_tokens={self.topic_tokens} cannot mark n_topics={self.n_topics}")

    @property
    def _topics(self) -> int:
        return self.n_topics if self.topic_tokens is None else self.topic_tokens

    @property
    def vocab_size(self) -> int:
        return self._topics + self.n_keys + self.n_values

    @property
    def length(self) -> int:
        return 3 * self.n_topics * self.n_pairs + 2 * self.n_asked

    @property
    def chance(self) -> float:
        return 1 / self.n_values

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        B, G, n, m = batch_size, self.n_topics, self.n_pairs, self.n_asked
        topics = choose_distinct(B, G, self._topics, generator)
        keys = self._topics + choose_distinct(B * G, n, self.n_keys, generator).view(B, G * n)
        values = self._topics + self.n_keys + torch.randint(self.n_values, (B, G * n), generator=generator)
        pairs = torch.stack([topics.repeat_interleave(n, dim=1), keys, values], dim=-1)  # [B, G n, 3]
        shown = pairs.gather(1, choose_distinct(B, G * n, G * n, generator)[..., None].expand(-1, -1, 3))
        asked = shown.gather(1, choose_distinct(B, m, G * n, generator)[..., None].expand(-1, -1, 3))
        inputs = torch.cat([shown.flatten(1), asked[..., :2].flatten(1)], dim=1)
        labels = torch.full((B, self.length), IGNORE)
        labels[:, 3 * G * n + 1 :: 2] = asked[..., 2]
        return Batch(inputs, labels, {"topics": torch.full((B,), G)})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        end = 3 * self.n_topics * self.n_pairs
        topic, key, value = inputs[:, :end].unflatten(1, (-1, 3)).unbind(-1)
        asked_topic, asked_key = inputs[:, end:].unflatten(1, (-1, 2)).unbind(-1)
        same = (asked_topic[..., None] == topic[:, None]) & (asked_key[..., None] == key[:, None])
        said = torch.zeros_like(inputs)
        said[:, end + 1 :: 2] = value.gather(1, same.int().argmax(-1))
        return said

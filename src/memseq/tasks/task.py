"""What a task is: a generator of questions with exact answers, its metric, and the players that frame a score.

    batch = task.sample(batch_size, seed, split)     a function of the config and these three alone
    task.metric(model(batch.inputs, state)[0], batch)

Alignment: `labels[:, i]` is what the model must say at position i, after reading `inputs[:, i]` and what came before:
it is compared with `logits[:, i]`. A label of -100 is not scored. Where a task is next-token prediction, its page says so.

The two splits draw from disjoint halves of the seed space: the generator of (seed, "train") is 2 seed, of
(seed, "test") 2 seed + 1, so that no test sample is a training sample by construction of the numbers.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from memseq.errors import ConfigError, InputError, nearest

__all__ = ["IGNORE", "Batch", "Piece", "Task", "choose_distinct"]

IGNORE = -100
SPLITS = ("train", "test")


class Piece(NamedTuple):
    """One segment of a batch, with the fields of a training segment."""

    tokens: Int64[Tensor, "B L"]
    targets: Int64[Tensor, "B L"]
    reset: Bool[Tensor, "B"]


class Batch(NamedTuple):
    """Questions and their answers. `slices` names groups by which a score is split: [B], or [B, T] with -1 for none."""

    inputs: Int64[Tensor, "B T"]
    labels: Int64[Tensor, "B T"]  # -100 where nothing is asked
    slices: dict[str, Tensor]

    def segments(self, length: int) -> list[Piece]:
        """The batch as segments of `length` tokens, the last one shorter where T is no multiple; each row begins afresh."""
        if length < 1:
            raise ConfigError(f"a segment of length={length} holds nothing; use at least 1")
        pieces = zip(self.inputs.split(length, dim=1), self.labels.split(length, dim=1), strict=True)
        return [Piece(tokens, targets, torch.full((len(tokens),), i == 0)) for i, (tokens, targets) in enumerate(pieces)]


class Task:
    """A frozen config that samples. A subclass names its `name` and `source`, and defines what raises here."""

    name: ClassVar[str]
    source: ClassVar[str]

    @property
    def vocab_size(self) -> int:
        """Tokens that inputs and labels use: 0 to vocab_size - 1."""
        raise TypeError(f"{type(self).__name__} must define vocab_size")

    @property
    def length(self) -> int:
        """Tokens of a sample, T."""
        raise TypeError(f"{type(self).__name__} must define length")

    @property
    def chance(self) -> float:
        """The accuracy expected of the best player without memory."""
        raise TypeError(f"{type(self).__name__} must define chance")

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        """The answers, found in the inputs alone: a player that scores 1. Positions that ask nothing hold anything."""
        raise TypeError(f"{type(self).__name__} must define oracle(inputs)")

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        raise TypeError(f"{type(self).__name__} must define _draw(batch_size, generator)")

    def sample(self, batch_size: int, seed: int, split: str = "train") -> Batch:
        """`batch_size` independent samples of `split` ("train" or "test"), on the host; the same numbers give the same samples."""
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} samples nothing; use at least 1")
        return self._draw(batch_size, self.generator(seed, split))

    def generator(self, seed: int, split: str) -> torch.Generator:
        """The source of chance for `seed`: even numbers train, odd numbers test."""
        if split not in SPLITS:
            raise ConfigError(f"there is no split {split!r}: {nearest(split, list(SPLITS))}")
        if not 0 <= seed < 2**62:
            raise ConfigError(f"seed={seed} must lie in 0 to 2**62 - 1")
        return torch.Generator().manual_seed(2 * seed + SPLITS.index(split))

    def metric(self, answers: Tensor, batch: Batch) -> dict[str, float]:
        """Shares of right answers: of all positions asked, of whole samples, and of each group of `batch.slices`.

        answers    logits [B, T, V], or the tokens said [B, T]

        `{"accuracy": 0.75, "exact": 0.5, "accuracy/distance=36": 0.75, ...}`
        """
        if answers.ndim == 3:
            answers = answers.argmax(-1)
        if answers.shape != batch.labels.shape:
            raise InputError(
                f"the answers have shape {list(answers.shape)} and the labels {list(batch.labels.shape)}; give one answer a position"
            )
        labels = batch.labels.to(answers.device)
        asked = labels != IGNORE
        right = (answers == labels) & asked
        rows = asked.any(1)
        scores = {"accuracy": _share(right, asked), "exact": _share((right == asked).all(1) & rows, rows)}
        for name, group in batch.slices.items():
            group = group.to(answers.device)
            group = group[:, None].expand_as(labels) if group.ndim == 1 else group
            for value in group[asked & (group >= 0)].unique().tolist():
                scores[f"accuracy/{name}={value}"] = _share(right & (group == value), asked & (group == value))
        return scores


def _share(part: Tensor, whole: Tensor) -> float:
    return int(part.sum()) / max(1, int(whole.sum()))


def choose_distinct(batch_size: int, n: int, of: int, generator: torch.Generator, log_weights: Any = None) -> Int64[Tensor, "batch_size n"]:
    """In each row `n` distinct numbers of 0 to `of` - 1, in the order of their drawing, without replacement.

    The n largest of log p + Gumbel noise are a draw without replacement with weights p: the whole batch in one sort.
    """
    noise = -torch.empty(batch_size, of, dtype=torch.float64).exponential_(generator=generator).log()
    return (noise if log_weights is None else noise + log_weights).topk(n, dim=-1).indices

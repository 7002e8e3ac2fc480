"""What came first? The order of two pieces of something that was read, with no note of when.

Source: SORT, Sequence Order Recall Tasks (Pink et al., arXiv:2410.08133).

    OrderTask          excerpt of distinct tokens, marker, then questions of two of them each
                       a c f b e d [!]  c b [?]  d a [?] ...        label at [?]: [yes] where the first came first, else [no]
    order_questions    excerpts of any text, cut at sentence starts, each with a pair of segments for every bin of distances

Bins of the distance between the starts of two segments of L_S words in an excerpt of L_E words, lower < D <= upper:

    L_E < 5000     L_S   L_E // 4   L_E // 3   L_E // 2   int(L_E / 1.25)
    L_E >= 5000    L_S   1000       L_E // 4   L_E // 2   int(L_E / 1.25)

A sentence starts after a word with one of . ? ! ; in it that is not mr., mrs. or dr. Excerpts are even over the text, and the segments
presented first even over the sentence starts: sets that a Kolmogorov-Smirnov test finds uneven (p <= 0.05) are drawn again. In exactly half
of a bin's questions the earlier segment is presented first, so whoever always says the same is right half of the time.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError, InputError
from memseq.tasks.task import IGNORE, Batch, Task, choose_distinct

__all__ = ["OrderQuestion", "OrderTask", "bin_edges", "even_pvalue", "order_questions", "same_pvalue", "sentence_starts"]


@dataclass(frozen=True, kw_only=True)
class OrderTask(Task):
    """Tokens: 0 to n_tokens - 1 of the excerpt, then marker, [?], [no], [yes]."""

    name: ClassVar[str] = "order"
    source: ClassVar[str] = "arXiv:2410.08133"

    n_read: int = 12  # tokens of the excerpt, all distinct
    n_tokens: int = 64  # kinds of tokens
    n_asked: int = 8  # questions about one excerpt
    shown: bool = True  # False: the excerpt is kept from the reader, the control without context

    def __post_init__(self) -> None:
        if self.n_read < 2 or self.n_asked < 1:
            raise ConfigError(f"n_read={self.n_read} with n_asked={self.n_asked} asks nothing; use at least 2 and 1")
        if self.n_tokens < self.n_read:
            raise ConfigError(
                f"n_read={self.n_read} distinct tokens do not exist among n_tokens={self.n_tokens}; use {self.n_read} or more"
            )

    @property
    def vocab_size(self) -> int:
        return self.n_tokens + 4

    @property
    def length(self) -> int:
        return self.n_read + 1 + 3 * self.n_asked

    @property
    def chance(self) -> float:
        return 0.5

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        n, Q = self.n_read, self.n_asked
        excerpt = choose_distinct(batch_size, n, self.n_tokens, generator)
        places = torch.stack([choose_distinct(batch_size, 2, n, generator) for _ in range(Q)], dim=1)  # [B, Q, 2]
        questions = torch.cat(
            [excerpt.gather(1, places.flatten(1)).view_as(places), torch.full((batch_size, Q, 1), self.n_tokens + 1)], dim=2
        )
        shown = excerpt if self.shown else torch.full_like(excerpt, self.n_tokens)
        inputs = torch.cat([shown, torch.full((batch_size, 1), self.n_tokens), questions.flatten(1)], dim=1)
        labels, distance = torch.full_like(inputs, IGNORE), torch.full_like(inputs, -1)
        labels[:, n + 3 :: 3] = self.n_tokens + 2 + (places[..., 0] < places[..., 1])
        distance[:, n + 3 :: 3] = (places[..., 0] - places[..., 1]).abs()
        return Batch(inputs, labels, {"distance": distance})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        if not self.shown:
            raise ConfigError("without the excerpt nobody can know the order; the oracle needs shown=True")
        n = self.n_read
        excerpt, pairs = inputs[:, :n], inputs[:, n + 1 :].unflatten(1, (-1, 3))[..., :2]
        place = (pairs[..., None] == excerpt[:, None, None]).int().argmax(-1)
        said = torch.zeros_like(inputs)
        said[:, n + 3 :: 3] = self.n_tokens + 2 + (place[..., 0] < place[..., 1])
        return said


class OrderQuestion(NamedTuple):
    """Two segments of an excerpt; places are words from the excerpt's, and the excerpt's from the text's, start."""

    excerpt: tuple[str, ...]
    excerpt_place: int
    earlier: tuple[str, ...]
    later: tuple[str, ...]
    earlier_place: int
    later_place: int
    bin: int  # the upper edge of its distances
    earlier_first: bool  # whether the earlier one is presented first

    @property
    def presented(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Segments A and B."""
        return (self.earlier, self.later) if self.earlier_first else (self.later, self.earlier)


def bin_edges(excerpt_length: int, segment_length: int) -> list[int]:
    """The edges of the distance bins, ascending. Raises `ConfigError` where an excerpt is too short for them."""
    near = [1000, excerpt_length // 4] if excerpt_length >= 5000 else [excerpt_length // 4, excerpt_length // 3]
    edges = [segment_length, *near, excerpt_length // 2, int(excerpt_length / 1.25)]
    if any(b <= a for a, b in itertools.pairwise(edges)):
        raise ConfigError(
            f"excerpts of {excerpt_length} words hold no bins for segments of {segment_length}; use {5 * segment_length} or more"
        )
    return edges


def sentence_starts(words: Sequence[str]) -> list[int]:
    """Where a sentence starts: at 0, and after every word that ends one."""
    ends = (i for i, word in enumerate(words) if any(c in word for c in ".?!;") and word.lower() not in {"mr.", "mrs.", "dr."})
    return [0, *(i + 1 for i in ends if i + 1 < len(words))]


def order_questions(
    text: str, *, excerpt_length: int = 250, segment_length: int = 20, n: int = 110, extra: int = 50, seed: int = 0
) -> list[OrderQuestion]:
    """`n` excerpts with one question for each of four bins of distances, bin by bin.

    Raises `InputError` where the text is too short, has too few sentences, or cannot be sampled evenly.
    """
    words, edges = text.split(), bin_edges(excerpt_length, segment_length)
    span = len(words) - excerpt_length
    if span < n:
        raise InputError(f"the text has {len(words)} words; {n} excerpts of {excerpt_length} need {excerpt_length + n} or more")
    chance = random.Random(seed)
    starts = sentence_starts(words)
    for _ in range(100):
        places = _excerpts(starts, span, n + extra, chance)
        if even_pvalue([place / span for place in places]) > 0.05:
            found = _pairs(words, places, excerpt_length, segment_length, edges, n, chance)
            if found is not None:
                return found
    raise InputError(
        f"no even set of {n} excerpts of {excerpt_length} words with segments of {segment_length} was found in 100 draws;"
        " use a longer text, shorter excerpts or fewer of them"
    )


def _excerpts(starts: list[int], span: int, n: int, chance: random.Random) -> list[int]:
    """Places drawn evenly, each moved left to the start of its sentence."""
    drawn = sorted(chance.randrange(span) for _ in range(n))
    places, at = [], 0
    for place in drawn:
        while at + 1 < len(starts) and starts[at + 1] <= place:
            at += 1
        places.append(starts[at])
    chance.shuffle(places)
    return places


def _pairs(
    words: list[str], places: list[int], excerpt_length: int, segment_length: int, edges: list[int], n: int, chance: random.Random
) -> list[OrderQuestion] | None:
    """Questions on the first `n` excerpts that have a pair for every bin; None where there are too few, or the pairs are uneven."""
    kept: list[tuple[int, list[tuple[int, int]]]] = []
    all_starts: list[float] = []
    for place in places:
        starts = [s for s in sentence_starts(words[place : place + excerpt_length]) if s < excerpt_length - segment_length]
        pairs = [_pair(starts, low, high, chance) for low, high in itertools.pairwise(edges)]
        if None not in pairs:
            kept.append((place, [pair for pair in pairs if pair is not None]))
            all_starts += starts
        if len(kept) == n:
            break
    if len(kept) < n:
        return None
    questions = []
    for i, upper in enumerate(edges[1:]):
        sides = [k % 2 == 0 for k in range(n)]
        chance.shuffle(sides)
        for (place, pairs), earlier_first in zip(kept, sides, strict=True):
            a, b = pairs[i]
            excerpt = tuple(words[place : place + excerpt_length])
            earlier, later = excerpt[a : a + segment_length], excerpt[b : b + segment_length]
            questions.append(OrderQuestion(excerpt, place, earlier, later, a, b, upper, earlier_first))
    presented = [float(q.earlier_place if q.earlier_first else q.later_place) for q in questions]
    return questions if same_pvalue(presented, all_starts) > 0.05 else None


def _pair(starts: list[int], low: int, high: int, chance: random.Random) -> tuple[int, int] | None:
    """Two sentence starts at a distance in (low, high], the first drawn evenly among all, then the second among those that fit."""
    order = list(starts)
    chance.shuffle(order)
    for a in order:
        fitting = [b for b in starts if low < abs(b - a) <= high]
        if fitting:
            b = chance.choice(fitting)
            return min(a, b), max(a, b)
    return None


def even_pvalue(values: Sequence[float]) -> float:
    """Kolmogorov-Smirnov: how likely numbers in [0, 1] are to lie this unevenly by chance."""
    n, ordered = len(values), sorted(values)
    apart = max(max((i + 1) / n - x, x - i / n) for i, x in enumerate(ordered))
    return _kolmogorov(apart, n)


def same_pvalue(first: Sequence[float], second: Sequence[float]) -> float:
    """Kolmogorov-Smirnov for two samples: how likely they are to differ this much by chance."""
    a, b = (torch.tensor(sorted(x), dtype=torch.float64) for x in (first, second))
    everywhere = torch.cat([a, b])
    apart = (torch.searchsorted(a, everywhere, right=True) / len(a) - torch.searchsorted(b, everywhere, right=True) / len(b)).abs().max()
    return _kolmogorov(float(apart), len(a) * len(b) / (len(a) + len(b)))


def _kolmogorov(apart: float, n: float) -> float:
    """The limiting distribution, with Stephens' correction for small n."""
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * apart
    if x < 0.2:
        return 1.0
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 101))))

"""What came first? An excerpt of text is read, and two pieces of it are weighed in either order.

    read     an excerpt of whole sentences, once
    asked    s = log p([/] first [/] second [/]) - log p([/] second [/] first [/])          each in a fork of the state; right where s > 0

Source: SORT (Pink et al., arXiv:2410.08133); excerpts, pieces and bins of distances are `tasks/order.py`'s, from the subject's own
text. Models that follow no instructions cannot be asked in words: here the order that the state finds likelier is the answer. [/] is a
line's end, behind the last piece too, so that both orders hold the same pairs of neighbours and a model that sees one token alone
finds them equal. Equal likelihoods count one half.

The same pieces are weighed by a stream that read nothing: some orders are likelier than others for anybody. What memory is worth is the
difference. Its standard error is over excerpts, for the questions of one excerpt are asked of the same text.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from memseq.errors import ConfigError, InputError
from memseq.probes.probe import Probe, Subject, say
from memseq.probes.scoring import Scorer
from memseq.tasks.order import OrderQuestion, order_questions

__all__ = ["OrderProbe", "order_scores"]

TIE = 1e-4  # nats: orders closer than rounding are equal
AT_ONCE = 8  # excerpts of a part
MOST = 1 << 18  # tokens of text that excerpts are drawn from


@dataclass(frozen=True, kw_only=True)
class OrderProbe(Probe):
    name: ClassVar[str] = "order"
    about: ClassVar[str] = "an excerpt is read, and two pieces of it are weighed: is their own order likelier than the other?"
    needs: ClassVar[tuple[str, ...]] = ("text",)

    excerpt_length: int = 250  # words
    segment_length: int = 20  # words of a piece
    separator: str = "\n"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.separator or self.separator.strip():
            raise ConfigError(f"separator={self.separator!r} must be white space, as between lines, so that it is part of no word")

    def questions(self, subject: Subject) -> list[OrderQuestion]:
        """`samples` excerpts with a question for each of four bins, bin by bin. Raises `InputError` where the text has not so many."""
        tokenizer: Any = subject.tokenizer
        texts, left = [], MOST
        for ids in subject.documents:
            texts.append(tokenizer.decode(ids[:left]))
            left -= min(left, len(ids))
        lengths = {"excerpt_length": self.excerpt_length, "segment_length": self.segment_length}
        return order_questions(" ".join(texts), n=self.samples, seed=self.seed, **lengths)

    def unmet(self, subject: Subject) -> str | None:
        if subject.tokenizer is None:
            return f"{self.name} needs a tokenizer, to know words"
        if why := super().unmet(subject):
            return why
        try:
            asked = self.questions(subject)
        except InputError as error:
            return f"{self.name} needs more text: {error}"
        encode = Scorer(subject.model, subject.tokenizer).encode
        longest = max(len(encode(self.separator.join([" ".join(words) for words in (q.excerpt, q.earlier, q.later)]))) for q in asked)
        if not self.room(subject, longest + 2):
            return f"{self.name} needs a model that can read {longest + 2} tokens, an excerpt and its question"
        return None

    def parts(self, subject: Subject) -> list[str]:
        return [f"excerpts {first} to {min(first + AT_ONCE, self.samples) - 1}" for first in range(0, self.samples, AT_ONCE)]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        first, last = (int(word) for word in part.split()[1::2])
        asked = self.questions(subject)
        chosen = [(i, q) for i, q in enumerate(asked) if first <= i % self.samples <= last]
        tokenizer: Any = subject.tokenizer
        scorer = Scorer(subject.model, tokenizer)
        read, unread = (
            order_scores(scorer, [q for _, q in chosen], separator=self.separator, context=context) for context in (True, False)
        )
        rows = [
            {
                "excerpt": i % self.samples,
                "bin": q.bin,
                "distance": q.later_place - q.earlier_place,
                "lag": self.excerpt_length - q.later_place,
                "read": s,
                "unread": c,
            }
            for (i, q), s, c in zip(chosen, read, unread, strict=True)
        ]
        return {"rows": rows}

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        rows = [row for part in parts.values() for row in part["rows"]]
        bins = []
        for edge in sorted({row["bin"] for row in rows}):
            own = [row for row in rows if row["bin"] == edge]
            bins.append({"up_to": edge, "distance": float(np.mean([row["distance"] for row in own])), **_told(own)})
        right = [_right(row["read"]) for row in rows]
        return {
            "excerpts": self.samples,
            "excerpt_words": self.excerpt_length,
            "piece_words": self.segment_length,
            "questions": len(rows),
            **_told(rows),
            "bins": bins,
            "slope_per_100_words_apart": 100 * _slope([row["distance"] for row in rows], right),
            "slope_per_100_words_ago": 100 * _slope([row["lag"] for row in rows], right),
        }

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        answer = f"{result['read']:.0%} of pairs when it has read the excerpt, {result['unread']:.0%} when it has not"
        answer += f" (a difference of {result['gain']:+.0%}, give or take {result['gain_error']:.0%})"
        return [say("Can it tell which of two pieces of a text came first?", answer, result["gain"])]


def order_scores(scorer: Scorer, questions: Sequence[OrderQuestion], *, separator: str = "\n", context: bool = True) -> list[float]:
    """s of each question in nats, above 0 where the true order is the likelier; each excerpt is read once, or not at all."""
    pairs = []
    for q in questions:
        excerpt = " ".join(q.excerpt) if context else ""
        orders = ((q.earlier, q.later), (q.later, q.earlier))
        pairs += [(excerpt, separator + "".join(" ".join(words) + separator for words in order)) for order in orders]
    said = [log_p for log_p, _ in scorer.loglikelihoods(pairs)]
    return [true - other for true, other in zip(said[::2], said[1::2], strict=True)]


def _right(score: float) -> float:
    return 0.5 if abs(score) < TIE else float(score > 0)


def _told(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Accuracy with and without the excerpt, each with its standard error, and the difference with its own, over excerpts."""
    read, unread = (np.array([_right(row[what]) for row in rows]) for what in ("read", "unread"))
    gains: dict[int, list[float]] = {}
    for row, gain in zip(rows, read - unread, strict=True):
        gains.setdefault(row["excerpt"], []).append(float(gain))
    each = np.array([np.mean(gain) for gain in gains.values()])
    return {
        "read": float(read.mean()),
        "read_error": _binomial(float(read.mean()), len(read)),
        "unread": float(unread.mean()),
        "unread_error": _binomial(float(unread.mean()), len(unread)),
        "gain": float(each.mean()),
        "gain_error": float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan,
    }


def _binomial(p: float, n: int) -> float:
    return math.sqrt(p * (1 - p) / n)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the line through points, by least squares; 0 where all x are one."""
    apart = np.asarray(x, dtype=np.float64) - np.mean(x)
    return float((apart * np.asarray(y)).sum() / max((apart**2).sum(), 1e-12))

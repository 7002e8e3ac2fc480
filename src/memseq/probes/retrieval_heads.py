"""Retrieval heads: which heads of attention look at what is about to be said, and what is lost without them.

Source: Wu et al. (arXiv:2404.15574). Pairs are shown, text follows, and a key is asked for. Of the trials that are answered rightly:

    score_h   the share in which head h, reading for the answer, looks most at the place of the answer
    mass_h    the mean weight that it lays there

A head whose score is 0.1 or more is a retrieval head. Then the strongest tenth of all heads is silenced (they add zero to the residual
stream, while the list is read and while it is asked for), and so are as many heads drawn from the others, several times. A model whose
recall is made by these heads loses it with the first and keeps it with the second.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from memseq.probes.asking import Alphabet, Pairs, ask, read_on
from memseq.probes.probe import Probe, Subject, say

__all__ = ["Attention", "RetrievalHeadsProbe", "head_scores", "silence"]

Head = tuple[int, int]  # layer, and head in it


@runtime_checkable
class Attention(Protocol):
    """What shows and silences the heads of a model."""

    heads: Sequence[Head]

    def weights(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "N B T"]:
        """Of each head, what the last token looks at, when `tokens` are a whole stream."""
        ...

    def silenced(self, heads: Sequence[Head]) -> AbstractContextManager[None]:
        """Inside the block these heads add nothing."""
        ...


def head_scores(
    weights: Float[Tensor, "N B T"], places: Int64[Tensor, "B"], right: Tensor
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """(score, mass) of each head over the rows that are `right`; zeros where none is."""
    if not bool(right.any()):
        return torch.zeros(len(weights)), torch.zeros(len(weights))
    kept, at = weights[:, right], places[right]
    looked = (kept.argmax(-1) == at).float().mean(1)
    return looked, kept.gather(-1, at[None, :, None].expand(len(kept), -1, 1))[..., 0].mean(1)


def silence(
    attention: Attention, order: Sequence[int], count: int, accuracy: Callable[[], float], *, draws: int, generator: torch.Generator
) -> tuple[float, list[float]]:
    """Accuracy without the first `count` heads of `order`, and without as many of the others, drawn `draws` times."""
    with attention.silenced([attention.heads[n] for n in order[:count]]):
        without_top = accuracy()
    others, rest = [], len(order) - count
    for _ in range(draws if rest >= count else 0):
        drawn = torch.randperm(rest, generator=generator)[:count].tolist()
        with attention.silenced([attention.heads[order[count + n]] for n in drawn]):
            others.append(accuracy())
    return without_top, others


@dataclass(frozen=True, kw_only=True)
class RetrievalHeadsProbe(Probe):
    name: ClassVar[str] = "retrieval_heads"
    about: ClassVar[str] = "which heads of attention look at the answer when it is asked for, and what is lost without them"
    needs: ClassVar[tuple[str, ...]] = ("attention",)

    load: int = 8
    distance: int = 16
    threshold: float = 0.1
    draws: int = 4  # of other heads

    def parts(self, subject: Subject) -> list[str]:
        return ["heads"]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        attention, random = subject.anatomy.attention, self.generator(part)
        alphabet, rows = Alphabet.of(subject), 4 * self.samples
        load = min(self.load, len(alphabet.keys))
        pairs = Pairs.draw(alphabet, rows, load, random)
        asked = pairs.some(1, random)
        keys, values = pairs.keys.gather(1, asked), pairs.values.gather(1, asked)
        filler = alphabet.filler(subject)
        between = torch.stack([filler.text(self.distance, start=row * 1024) for row in range(rows)])
        shown = torch.cat([pairs.tokens.to(subject.device), between], dim=1)

        def answers() -> Any:
            return ask(subject.model, read_on(subject.model, shown, subject.model.init_state(rows)), keys, values, alphabet)

        whole = answers()
        weights = attention.weights(torch.cat([shown, keys.to(subject.device)], dim=1)).float().cpu()
        score, mass = head_scores(weights, 2 * asked[:, 0] + 1, whole.right[:, 0])
        order = score.argsort(descending=True, stable=True).tolist()
        count = math.ceil(len(order) / 10)
        without_top, others = silence(attention, order, count, lambda: answers().accuracy, draws=self.draws, generator=random)
        heads = [
            {"layer": layer, "head": head, "score": float(s), "mass": float(m)}
            for (layer, head), s, m in zip(attention.heads, score, mass, strict=True)
        ]
        return {
            "heads": heads,
            "trials": rows,
            "successes": int(whole.right.sum()),
            "accuracy": whole.accuracy,
            "silenced": count,
            "without_top": without_top,
            "without_others": others,
            "chance": alphabet.chance,
        }

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        found = parts["heads"]
        return {**found, "retrieval_heads": sum(head["score"] >= self.threshold for head in found["heads"])}

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        best = max(result["heads"], key=lambda head: head["score"])
        answer = f"{result['retrieval_heads']} of {len(result['heads'])}, by {result['successes']} right answers of {result['trials']}"
        answer += f"; the strongest (layer {best['layer'] + 1}, head {best['head'] + 1}) looks at {best['score']:.0%} of them"
        rows = [say("Which heads of attention retrieve?", answer, best["score"])]
        if result["without_others"]:
            other = sum(result["without_others"]) / len(result["without_others"])
            lost = f"{result['accuracy']:.0%} right, {result['without_top']:.0%} without the strongest {result['silenced']},"
            rows.append(say("Is recall lost without them?", f"{lost} {other:.0%} without as many others", result["without_top"]))
        return rows

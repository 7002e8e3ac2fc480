"""Verbatim memory: how much a list of nouns still surprises when it is read for the second time.

    preface : w_1, ..., w_N.  something in between  cue : w'_1, ..., w'_N.          r = 100 x surprisal of w' / surprisal of w

Source: Armeni, Honey & Linzen (arXiv:2210.13569); the texts are `tasks/nouns.py`'s. r is the median over texts, the first noun of each
list left out, as no noun before it could call it. 100: nothing is remembered; near 0: word for word. A repeated list that surprises less
than a permuted one shows that the order is kept, a permuted one that surprises less than other nouns that the nouns are. No training is
needed for the question: any language model can be asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.probes.asking import surprisal
from memseq.probes.probe import Probe, Subject, say
from memseq.tasks.nouns import CONDITIONS, NOUNS, SCENE, Scene, Stimulus, noun_lists, stimulus

__all__ = ["VerbatimProbe", "byte_places", "median_with_error", "word_surprisals"]

AT_ONCE = 16  # texts read side by side


@dataclass(frozen=True, kw_only=True)
class VerbatimProbe(Probe):
    name: ClassVar[str] = "verbatim"
    about: ClassVar[str] = (
        "a list of nouns is read, then something else, then the list again, or its nouns in another order, or other nouns"
    )

    sizes: tuple[int, ...] = (3, 5, 10)  # nouns of a list
    between: tuple[int, ...] = (0, 1, 3)  # passages of the scene, from the shortest on
    nouns: tuple[str, ...] = NOUNS
    scene: Scene = SCENE

    def unmet(self, subject: Subject) -> str | None:
        return f"{self.name} needs a tokenizer, to read its own texts" if subject.tokenizer is None else super().unmet(subject)

    def parts(self, subject: Subject) -> list[str]:
        return [f"{condition},N={n},between={b}" for condition in CONDITIONS for n in self.sizes for b in self.between]

    def texts(self, condition: Any, n: int, between: int) -> list[Stimulus]:
        """`samples` texts: lists in turn, then their turns."""
        lists = noun_lists(self.nouns, n_base=min(10, len(set(self.nouns)) // 10), seed=self.seed)
        places = [(base, turn) for turn in range(len(lists[0])) for base in range(len(lists))][: self.samples]
        return [stimulus(lists, base, turn, condition, size=n, scene=self.scene, between=between) for base, turn in places]

    def measure(self, subject: Subject, part: str) -> dict[str, Any]:
        condition, n, b = part.split(",")
        texts = self.texts(condition, int(n.removeprefix("N=")), int(b.removeprefix("between=")))
        first, second = (
            torch.cat(t)
            for t in zip(*(word_surprisals(subject, texts[i : i + AT_ONCE]) for i in range(0, len(texts), AT_ONCE)), strict=True)
        )
        ratios = 100 * second[:, 1:].mean(1) / first[:, 1:].mean(1)
        middle, low, high = median_with_error(ratios, self.generator(part))
        return {
            "condition": condition,
            "size": texts[0].size,
            "between": int(b.removeprefix("between=")),
            "ratio": middle,
            "low": low,
            "high": high,
            "first_bits": (first.median(0).values / torch.tensor(2.0).log()).tolist(),
            "second_bits": (second.median(0).values / torch.tensor(2.0).log()).tolist(),
        }

    def conclude(self, subject: Subject, parts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        told: dict[str, Any] = {"sizes": list(self.sizes), "between": list(self.between), "texts": self.samples}
        for condition in CONDITIONS:
            table = [[parts[f"{condition},N={n},between={b}"] for b in self.between] for n in self.sizes]
            told[condition] = {what: [[cell[what] for cell in row] for row in table] for what in ("ratio", "low", "high")}
        told["time_course"] = {
            condition: parts[f"{condition},N={self.sizes[-1]},between={self.between[0]}"]["second_bits"] for condition in CONDITIONS
        }
        return told

    def says(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        repeat, permute, control = (result[condition]["ratio"][-1][0] for condition in CONDITIONS)
        n = result["sizes"][-1]
        answer = f"{repeat:.0f} % in the same order, {permute:.0f} % in another, {control:.0f} % for other nouns (100 %: as at first)"
        return [say(f"How surprising is a list of {n} nouns when it is read again?", answer, repeat)]


def byte_places(subject: Subject, ids: Tensor) -> Tensor:
    """Where each token of a text ends, in bytes."""
    width = (
        torch.ones(subject.vocab_size, dtype=torch.int64) if subject.token_bytes is None else torch.as_tensor(subject.token_bytes).long()
    )
    return width[ids].cumsum(0)


def word_surprisals(subject: Subject, texts: list[Stimulus]) -> tuple[Float[Tensor, "texts N"], Float[Tensor, "texts N"]]:
    """Nats of every noun of the first and of the second lists: of the tokens that begin in it or in the space before it.

    Texts are ASCII, so that characters are bytes. They are read side by side; what follows the end of a shorter one is never looked at.
    """
    tokenizer: Any = subject.tokenizer
    ids = [torch.tensor(tokenizer.encode(text.text.encode()), dtype=torch.int64) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    nats, _ = surprisal(subject.model, tokens.to(subject.device), subject.model.init_state(len(texts)))
    found = []
    for spans in ([text.first for text in texts], [text.second for text in texts]):
        rows = []
        for row, (own, text_ids) in zip(nats, zip(spans, ids, strict=True), strict=True):
            ends = byte_places(subject, text_ids)
            begins = torch.cat([ends.new_zeros(1), ends[:-1]])[1:]  # of the tokens that have a surprisal: all but the first
            inside = [(begins >= start) & (begins < end) for start, end in own]
            rows.append(torch.stack([row[: len(begins)][mask].sum() for mask in inside]))
        found.append(torch.stack(rows))
    return found[0], found[1]


def median_with_error(values: Float[Tensor, "n"], generator: torch.Generator, draws: int = 2000) -> tuple[float, float, float]:
    """The median, and the ends of its 95 % interval by bootstrap."""
    again = values[torch.randint(len(values), (draws, len(values)), generator=generator)].median(1).values
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=again.dtype)).tolist()
    return float(values.median()), low, high

"""Two games of cards from POPGym, as sequence labelling: the suit of a card long gone, and a deck said backwards.

Source: POPGym (Morad et al., arXiv:2303.01859); asked of Stable Hadamard Memory (Le et al., arXiv:2410.10132). There an agent is
rewarded for each suit it names; here the suits are labels, so that what is measured is the memory and not the exploration.

    RepeatPrevious    inputs  c_1 c_2 c_3 ...             label at t: c_{t-k+1}, the k-th last card (k = 1 is the one on show)
    Autoencode        inputs  c_1 ... c_{n-1} [c_n] [hidden] ...      labels from the last card on: c_n c_{n-1} ... c_1

Cards are suits. A deck that is `dealt` holds each suit equally often, as a deck of 52 does; otherwise suits are drawn alike. The
published games: RepeatPrevious k = 4, 32, 64 with 52, 104, 156 cards; Autoencode 52, 104, 156 cards.

A player without memory guesses: 1 / n_suits; of a dealt deck a suit other than the one on show is left more often; and the first
answer of Autoencode is the card on show.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE, Batch, Task

__all__ = ["AutoencodeTask", "RepeatPreviousTask"]


def check_cards(n_cards: int, n_suits: int, dealt: bool) -> None:
    """Raise `ConfigError` where no such deck exists."""
    if n_suits < 2:
        raise ConfigError(f"n_suits={n_suits} leaves nothing to guess; use at least 2")
    if dealt and n_cards % n_suits:
        near = n_suits * max(1, round(n_cards / n_suits))
        raise ConfigError(f"n_cards={n_cards} are not n_suits={n_suits} equal suits; use a multiple, such as {near}, or dealt=False")


def cards(batch_size: int, n_cards: int, n_suits: int, dealt: bool, generator: torch.Generator) -> Int64[Tensor, "B n"]:
    """The suits of a shuffled deck, or suits drawn alike."""
    if not dealt:
        return torch.randint(n_suits, (batch_size, n_cards), generator=generator)
    return torch.rand(batch_size, n_cards, generator=generator, dtype=torch.float64).argsort(dim=1) % n_suits


@dataclass(frozen=True, kw_only=True)
class RepeatPreviousTask(Task):
    """Tokens: suits 0 to n_suits - 1."""

    name: ClassVar[str] = "repeat_previous"
    source: ClassVar[str] = "arXiv:2303.01859"

    k: int = 4
    n_cards: int = 52
    n_suits: int = 4
    dealt: bool = True

    def __post_init__(self) -> None:
        check_cards(self.n_cards, self.n_suits, self.dealt)
        if not 2 <= self.k <= self.n_cards:
            raise ConfigError(f"k={self.k} must lie in 2 (the card before) to n_cards={self.n_cards}; k=1 would ask for the card on show")

    @property
    def vocab_size(self) -> int:
        return self.n_suits

    @property
    def length(self) -> int:
        return self.n_cards

    @property
    def chance(self) -> float:
        return self.n_cards / self.n_suits / (self.n_cards - 1) if self.dealt else 1 / self.n_suits

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        inputs = cards(batch_size, self.n_cards, self.n_suits, self.dealt, generator)
        labels = torch.full_like(inputs, IGNORE)
        labels[:, self.k - 1 :] = inputs[:, : self.n_cards - self.k + 1]
        late = torch.full_like(inputs, -1)
        late[:, self.k - 1 :] = (torch.arange(self.k - 1, self.n_cards) >= self.n_cards // 2).long()
        return Batch(inputs, labels, {"second_half": late})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        return inputs.roll(self.k - 1, dims=1)


@dataclass(frozen=True, kw_only=True)
class AutoencodeTask(Task):
    """Tokens: suits 0 to n_suits - 1 while watching; n_suits + suit for the last card, when answers begin; then n_suits, for nothing."""

    name: ClassVar[str] = "autoencode"
    source: ClassVar[str] = "arXiv:2303.01859"

    n_cards: int = 52
    n_suits: int = 4
    dealt: bool = True

    def __post_init__(self) -> None:
        check_cards(self.n_cards, self.n_suits, self.dealt)
        if self.n_cards < 2:
            raise ConfigError(f"n_cards={self.n_cards} is no list; use at least 2")

    @property
    def vocab_size(self) -> int:
        return 2 * self.n_suits

    @property
    def length(self) -> int:
        return 2 * self.n_cards - 1

    @property
    def chance(self) -> float:
        return (1 + (self.n_cards - 1) / self.n_suits) / self.n_cards

    def _draw(self, batch_size: int, generator: torch.Generator) -> Batch:
        n = self.n_cards
        shown = cards(batch_size, n, self.n_suits, self.dealt, generator)
        inputs = torch.full((batch_size, self.length), self.n_suits)
        inputs[:, :n] = shown
        inputs[:, n - 1] += self.n_suits
        labels = torch.full_like(inputs, IGNORE)
        labels[:, n - 1 :] = shown.flip(1)
        distance = torch.full_like(inputs, -1)
        distance[:, n - 1 :] = (
            (2 * torch.arange(1, n + 1) - 1).double().log2().floor().long()
        )  # between the card and its answer, as a power of 2
        return Batch(inputs, labels, {"log2_distance": distance})

    def oracle(self, inputs: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        n = self.n_cards
        return torch.cat([inputs[:, : n - 1], inputs[:, :n].flip(1) % self.n_suits], dim=1)

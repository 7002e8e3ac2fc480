"""Showing pairs to a model and asking for them: what recall, capacity and retention are made of.

    shown    k_1 v_1 k_2 v_2 ... k_n v_n          keys distinct, values drawn freely
    asked    k_i   ->   v_i                       in a fork of the state, so that no question disturbs another

Keys and values are tokens of the model's own vocabulary: common ones of its text, but for the very commonest, so that what is read
in between can be text without any of them: nothing there binds a key anew, and a perfect memory answers all. The answer is the
likeliest of the `n_values` values and nothing else, so chance is 1 / n_values for every model, trained for the question or not.
A model that copies what followed a token before, which language models learn to do, can answer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from memseq.errors import DataError
from memseq.probes.probe import Subject
from memseq.state import State, fork, select, state_bytes
from memseq.tasks.task import choose_distinct

__all__ = ["Alphabet", "Answers", "Pairs", "ask", "read_on", "surprisal"]

LOGITS = 1 << 23  # logits held at once
HELD = 1 << 26  # bytes of forked states held at once
PIECE = 256  # tokens read at once
COMMONEST = 32  # tokens that are no keys and values


@dataclass(frozen=True, kw_only=True)
class Alphabet:
    """The tokens that pairs are made of."""

    keys: Int64[Tensor, "keys"]
    values: Int64[Tensor, "values"]

    @classmethod
    def of(cls, subject: Subject, n_values: int = 16, n_keys: int = 256) -> "Alphabet":
        """`n_values` values and up to `n_keys` keys, fewer where the vocabulary is small; the commonest tokens stay for the text."""
        found = subject.ranked()
        found = found[min(COMMONEST, len(found) // 3) :][: n_values + n_keys]
        n_values = min(n_values, max(1, len(found) // 3))
        mixed = torch.tensor(found)[torch.randperm(len(found), generator=torch.Generator().manual_seed(1))]
        if len(mixed) < 2 or n_values < 2:
            raise DataError(
                f"{subject.name} knows {subject.vocab_size} tokens, too few to make pairs of; use a model of more, or more text"
            )
        return cls(values=mixed[:n_values], keys=mixed[n_values:])

    def filler(self, subject: Subject) -> Subject:
        """The subject with a text that holds none of these tokens."""
        return subject.without([*self.keys.tolist(), *self.values.tolist()])

    @property
    def chance(self) -> float:
        return 1 / len(self.values)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Lists of n pairs, one a stream; `values` are places in the alphabet."""

    keys: Int64[Tensor, "B n"]
    values: Int64[Tensor, "B n"]
    tokens: Int64[Tensor, "B T"]  # as they are read: k_1 v_1 k_2 v_2 ...

    @classmethod
    def draw(cls, alphabet: Alphabet, streams: int, n: int, generator: torch.Generator) -> "Pairs":
        keys = alphabet.keys[choose_distinct(streams, n, len(alphabet.keys), generator)]
        values = torch.randint(len(alphabet.values), (streams, n), generator=generator)
        return cls(keys=keys, values=values, tokens=torch.stack([keys, alphabet.values[values]], dim=2).flatten(1))

    def some(self, n_asked: int, generator: torch.Generator) -> Int64[Tensor, "B Q"]:
        """Places of the pairs that are asked for: all where they are few, else some of each stream."""
        streams, n = self.keys.shape
        return choose_distinct(streams, min(n, n_asked), n, generator)


@dataclass(frozen=True, kw_only=True)
class Answers:
    right: Bool[Tensor, "B Q"]
    bits: Float[Tensor, "B Q"]  # told by each answer: log2 n_values - its surprisal; 0 for a guess, below 0 for a confident mistake

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())

    @property
    def told(self) -> float:
        """Bits an answer, at least zero: a player may always guess instead."""
        return max(0.0, float(self.bits.mean()))


def read_on(model: Any, tokens: Int64[Tensor, "B T"], state: State, *, piece: int = PIECE) -> State:
    """The state after `tokens`, a piece at a time."""
    for part in tokens.split(piece, dim=1) if tokens.shape[1] else ():
        state = model.advance(part, state)
    return state


def ask(model: Any, state: State, keys: Int64[Tensor, "B Q"], values: Int64[Tensor, "B Q"], alphabet: Alphabet) -> Answers:
    """Put each key to a fork of its stream's state; `state` stays as it is."""
    streams, asked = keys.shape
    device = next(model.parameters()).device
    choices, keys = alphabet.values.to(device), keys.to(device)
    at_once = max(1, HELD // max(1, asked * state_bytes(state) // streams))
    logits = []
    for first in range(0, streams, at_once):
        rows = slice(first, min(streams, first + at_once))
        copies = fork(select(state, rows), asked) if asked > 1 else select(state, rows)
        logits.append(model.step(keys[rows].flatten(), copies)[0][:, choices].float().view(-1, asked, len(choices)).cpu())
    log_p = torch.cat(logits).log_softmax(-1)
    told = log_p.gather(-1, values[..., None])[..., 0] / math.log(2) + math.log2(len(choices))
    return Answers(right=log_p.argmax(-1) == values, bits=told.double())


def surprisal(model: Any, tokens: Int64[Tensor, "B T"], state: State) -> tuple[Float[Tensor, "B S"], State]:
    """Nats of each token but the first after those before it, [B, T - 1], and the state after all of them."""
    piece = max(1, min(PIECE, LOGITS // (len(tokens) * model.config.vocab_size)))
    nats = []
    for part, following in zip(tokens[:, :-1].split(piece, 1), tokens[:, 1:].split(piece, 1), strict=True):
        logits, state = model(part, state)
        nats.append(F.cross_entropy(logits.float().flatten(0, 1), following.flatten(), reduction="none").view_as(following).double().cpu())
    return torch.cat(nats, dim=1), model.advance(tokens[:, -1:], state)

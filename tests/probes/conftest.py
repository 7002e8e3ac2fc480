"""Models whose memory is known without measuring: probes must find just that."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.probes import Subject

V = 96


@dataclass(frozen=True, kw_only=True)
class Known:
    vocab_size: int = V
    d_model: int = 4


class FifoState(NamedTuple):
    held: Tensor  # [B, n]: the last n tokens + 1, newest last; 0 where nothing was read yet


class Fifo(Memory):
    """Keeps the last n tokens, and is sure that a token is followed by what followed it there the last time; else it knows nothing."""

    def __init__(self, n):
        super().__init__()
        self.config, self.n = Known(), n
        self.weight = nn.Parameter(torch.zeros(1))

    def check_input(self, x, state):
        assert x.ndim == 2
        assert x.shape[1] > 0

    def init_state(self, batch_size):
        return FifoState(torch.zeros(batch_size, self.n))

    def step(self, tokens, state):
        held = torch.cat([state.held, tokens[:, None] + 1.0], dim=1)[:, -self.n :].clone()
        met = (held[:, :-1] == held[:, -1:]) * torch.arange(1, self.n)
        at = met.argmax(1)
        logits = torch.zeros(len(tokens), V)
        known = met.amax(1) > 0
        logits[known, held.gather(1, at[:, None] + 1)[:, 0].long()[known] - 1] = 30.0
        return logits, FifoState(held)

    def forward(self, tokens, state):
        said = []
        for token in tokens.unbind(1):
            logits, state = self.step(token, state)
            said.append(logits)
        return torch.stack(said, dim=1), state

    def advance(self, tokens, state):
        return FifoState(torch.cat([state.held, tokens + 1.0], dim=1)[:, -self.n :].clone())


class SumState(NamedTuple):
    h: Tensor


class Leaky(Fifo):
    """Adds every token's random vector to a sum that keeps the share `keep` of itself; it knows nothing of what follows."""

    def __init__(self, keep, d=64):
        super().__init__(2)
        self.keep = keep
        self.register_buffer("vectors", torch.randn(V, d, generator=torch.Generator().manual_seed(0)))

    def init_state(self, batch_size):
        return SumState(torch.zeros(batch_size, self.vectors.shape[1]))

    def step(self, tokens, state):
        return torch.zeros(len(tokens), V), SumState(self.keep * state.h + self.vectors[tokens])

    def advance(self, tokens, state):
        for token in tokens.unbind(1):
            _, state = self.step(token, state)
        return state


def text(n=20_000):
    """Tokens that come as often as their number is small."""
    generator = np.random.default_rng(0)
    return np.minimum(generator.geometric(0.03, size=n) - 1, V - 1).astype(np.int64)


@pytest.fixture
def subject():
    """A maker of subjects: a model, with or without text."""

    def make(model, *, with_text=True, **known):
        return Subject(name="known", model=model, documents=(text(),) if with_text else (), **known)

    return make


@pytest.fixture
def fifo():
    return Fifo


@pytest.fixture
def leaky():
    return Leaky

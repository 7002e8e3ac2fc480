"""Toy language models that keep the law, so that streams are tested on the law alone."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from memseq.contract import Memory, empty
from memseq.state import choose


class GruState(NamedTuple):
    h: Tensor
    seen: Tensor


@dataclass(frozen=True, kw_only=True)
class GruLMConfig:
    vocab_size: int = 11
    d_model: int = 8
    dropout: float = 0.0


class GruLM(Memory):
    """One GRU between an embedding and a head; counts its tokens on the host."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.gru = nn.GRU(config.d_model, config.d_model, batch_first=True)
        self.head = nn.Linear(config.d_model, config.vocab_size)
        self.dropout = nn.Dropout(config.dropout)

    def check_input(self, tokens, state):
        assert tokens.ndim == 2
        assert tokens.shape[1] > 0

    def init_state(self, batch_size):
        return GruState(self.head.weight.new_zeros(batch_size, self.config.d_model), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, tokens, state):
        y, h = self.gru(self.dropout(self.embedding(tokens)), state.h[None].contiguous())
        return 4 * self.head(y), GruState(h[0], state.seen + tokens.shape[1])


class SegmentState(NamedTuple):
    memory: Tensor
    open: Tensor
    position: Tensor


class SegmentLM(GruLM):
    """Closes a segment every three tokens of each row's own count; between borders the tokens are gathered."""

    length = 3

    def init_state(self, batch_size):
        w = self.head.weight
        memory = w.new_zeros(batch_size, self.config.d_model)
        return SegmentState(memory, empty(w, batch_size, self.config.d_model), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, tokens, state):
        y = []
        for token in tokens.unbind(1):
            gathered = state.open + self.embedding(token)
            y.append(self.head(torch.tanh(gathered + state.memory)))
            position = state.position + 1
            closed = SegmentState(torch.tanh(state.memory + gathered), torch.zeros_like(gathered), torch.zeros_like(position))
            state = choose(position == self.length, closed, SegmentState(state.memory, gathered, position))
        return torch.stack(y, dim=1), state


class StoreState(NamedTuple):
    store: Tensor  # [B, n, D], zeros past each row's own length
    seen: Tensor


class StoreLM(GruLM):
    """Keeps every token: its state grows with the stream. Reads the mean of its store."""

    bounded = False

    def init_state(self, batch_size):
        w = self.head.weight
        return StoreState(w.new_zeros(batch_size, 0, self.config.d_model), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, tokens, state):
        y, (store, seen) = [], state
        for token in tokens.unbind(1):
            store = (
                torch.cat([store, store.new_zeros(len(store), 1, store.shape[2])], dim=1) if int(seen.max()) == store.shape[1] else store
            )
            here = torch.nn.functional.one_hot(seen, store.shape[1])[..., None]
            store = store + here * self.embedding(token)[:, None]
            seen = seen + 1
            y.append(self.head(store.sum(1) / seen[:, None]))
        return torch.stack(y, dim=1), StoreState(store, seen)


MODELS = {"gru": GruLM, "segments": SegmentLM, "store": StoreLM}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param](GruLMConfig()).double().eval()


@pytest.fixture
def gru():
    """A factory of GRU language models: `gru(vocab_size=256)`."""

    def build(**options):
        return GruLM(GruLMConfig(**options)).double().eval()

    return build

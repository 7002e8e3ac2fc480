"""Small memories that keep every law: what the broken ones are changes of.

`Gated` is a leaky integrator with an input gate and dropout, whose initial state is learned. `Segmented` closes a segment
every few tokens, with a count for each row on the host. `Growing` keeps every token. `Smoothed` is an encoder, which sees
the rest of its piece. `Reader` is `Gated` over tokens.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from memseq.contract import Memory, empty
from memseq.state import choose


class GatedState(NamedTuple):
    h: Tensor  # [B, D]


@dataclass(frozen=True, kw_only=True)
class GatedConfig:
    d_model: int = 4
    dropout: float = 0.0
    memory: ClassVar[type]

    def build(self) -> "Gated":
        return self.memory(self)


class Gated(Memory[GatedState]):
    """g = sigmoid(W_g x + U_g h), h' = (1 - g) h + g tanh(W x), y = W_o dropout(h')."""

    def __init__(self, config: GatedConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.gate, self.candidate, self.back, self.output = (nn.Linear(D, D) for _ in range(4))
        self.initial = nn.Parameter(torch.randn(D))
        self.dropout = nn.Dropout(config.dropout)

    def init_state(self, batch_size: int) -> GatedState:
        return GatedState(self.initial.to(torch.promote_types(self.initial.dtype, torch.float32)).repeat(batch_size, 1))

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        gate, candidate = self.gate(x), self.candidate(x).tanh()
        h, hs = state.h, []
        for t in range(x.shape[1]):
            h = self.update(h, gate[:, t], candidate[:, t])
            hs.append(h)
        return self.output(torch.stack(hs, dim=1)), GatedState(h)

    def update(self, h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            g = (gate.to(h.dtype) + nn.functional.linear(h, self.back.weight.to(h.dtype))).sigmoid()
            return (1 - g) * h + g * self.dropout(candidate.to(h.dtype))


GatedConfig.memory = Gated


class SegmentedState(NamedTuple):
    total: Tensor  # [B, D], of the open segment
    memory: Tensor  # [B, D], after the last closed segment
    position: Tensor  # [B] int64, tokens in the open segment


@dataclass(frozen=True, kw_only=True)
class SegmentedConfig:
    d_model: int = 4
    segment_length: int = 4
    memory: ClassVar[type]

    def build(self) -> "Segmented":
        return self.memory(self)


class Segmented(Memory[SegmentedState]):
    """y = W_o tanh(W x + M); M' = tanh(U M + sum of W x over the segment), when the segment is full."""

    def __init__(self, config: SegmentedConfig) -> None:
        super().__init__()
        self.config = config
        self.input, self.carry, self.output = (nn.Linear(config.d_model, config.d_model) for _ in range(3))

    def init_state(self, batch_size: int) -> SegmentedState:
        like = self.input.weight.new_zeros((), dtype=torch.promote_types(self.input.weight.dtype, torch.float32))
        D = self.config.d_model
        return SegmentedState(empty(like, batch_size, D), empty(like, batch_size, D), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Tensor, state: SegmentedState) -> tuple[Tensor, SegmentedState]:
        ys = []
        while x.shape[1]:
            piece, x = x.tensor_split([self.room(state)], dim=1)
            y, state = self.piece(piece, state)
            ys.append(y)
        return torch.cat(ys, dim=1), state

    def room(self, state: SegmentedState) -> int:
        return self.config.segment_length - int(state.position.max())

    def piece(self, x: Tensor, state: SegmentedState) -> tuple[Tensor, SegmentedState]:
        u = self.input(x).to(state.memory.dtype)
        y = self.output((u + state.memory[:, None]).tanh())
        position = state.position + x.shape[1]
        opened = SegmentedState(state.total + u.sum(1), state.memory, position)
        full = position == self.config.segment_length
        with torch.autocast(x.device.type, enabled=False):
            closed_memory = (self.carry(opened.memory.to(self.carry.weight.dtype)).to(opened.total.dtype) + opened.total).tanh()
        closed = SegmentedState(empty(opened.total, *opened.total.shape), closed_memory, torch.zeros_like(position))
        return y, closed if bool(full.all()) else choose(full, closed, opened)


SegmentedConfig.memory = Segmented


class GrowingState(NamedTuple):
    tokens: Tensor  # [B, seen, D]
    seen: Tensor  # [B] int64


@dataclass(frozen=True, kw_only=True)
class GrowingConfig:
    d_model: int = 4
    memory: ClassVar[type]

    def build(self) -> "Growing":
        return self.memory(self)


class Growing(Memory[GrowingState]):
    """y_t = W (x_t + the mean of all tokens up to t), from a store of all tokens."""

    bounded = False

    def __init__(self, config: GrowingConfig) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_state(self, batch_size: int) -> GrowingState:
        w = self.output.weight
        return GrowingState(w.new_zeros(batch_size, 0, self.config.d_model), torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Tensor, state: GrowingState) -> tuple[Tensor, GrowingState]:
        rows, counts = [], state.seen.tolist()
        for store, seen, fresh in zip(state.tokens, counts, x.to(state.tokens.dtype), strict=True):
            rows.append(torch.cat([store[:seen], fresh]))
        means = [row.cumsum(0)[seen:] / torch.arange(seen + 1, len(row) + 1)[:, None] for row, seen in zip(rows, counts, strict=True)]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # zeros past a stream's own length, which nothing reads
        return self.output(x + torch.stack(means).to(x.dtype)), GrowingState(tokens, state.seen + x.shape[1])


GrowingConfig.memory = Growing


@dataclass(frozen=True, kw_only=True)
class SmoothedConfig:
    d_model: int = 4

    def build(self) -> "Smoothed":
        return Smoothed(self)


class Smoothed(Memory[GatedState]):
    """An encoder: h_t = h_{t-1} / 2 + x_t forwards, and the mean of the piece to be read."""

    causal = False

    def __init__(self, config: SmoothedConfig) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_state(self, batch_size: int) -> GatedState:
        return GatedState(self.output.weight.new_zeros(batch_size, self.config.d_model))

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        h, hs = state.h, []
        for t in range(x.shape[1]):
            h = h / 2 + x[:, t]
            hs.append(h)
        return self.output(torch.stack(hs, dim=1) + x.mean(1, keepdim=True)), GatedState(h)


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    vocab_size: int = 11
    d_model: int = 4
    dropout: float = 0.0

    def build(self) -> "Reader":
        return Reader(self)


class Reader(Memory[GatedState]):
    """Tokens in, logits out; the embedding is tied."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.memory = GatedConfig(d_model=config.d_model, dropout=config.dropout).build()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.head.weight = self.embedding.weight

    def check_input(self, x: Tensor, state: GatedState) -> None:
        """Tokens have no features to check."""

    def init_state(self, batch_size: int) -> GatedState:
        return self.memory.init_state(batch_size)

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, state = self.memory(self.embedding(x), state)
        return self.head(y), state


SANE = (GatedConfig(), GatedConfig(dropout=0.3), SegmentedConfig(), GrowingConfig(), SmoothedConfig(), ReaderConfig())

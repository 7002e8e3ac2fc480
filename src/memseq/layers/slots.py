"""Reading and writing a constant number of slots: the two modules every Memformer is made of.

`SlotReader` lets tokens attend to the slots; `SlotWriter` keeps them: it takes a segment's tokens into a running softmax
and, when the segment is full, closes it into new slots. Equations: `ops/memformer.py`.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.contract import empty
from memseq.errors import ConfigError
from memseq.layers.linear import Linear, weight_of
from memseq.ops.linear import linear
from memseq.ops.memformer import NOTHING, biased_normalise, close_slots, gather_tokens, lift, read_lifted, read_projected, split_heads
from memseq.state import choose

__all__ = ["SlotReader", "SlotState", "SlotWriter", "SlotsConfig"]


class SlotState(NamedTuple):
    slots: Float[Tensor, "B N D"]  # the memory after the last closed segment
    peak: Float[Tensor, "B H N"]  # of the open segment: the running maximum of the logits,
    mass: Float[Tensor, "B H N"]  # the sum of the weights,
    total: Float[Tensor, "B H N K"]  # and the weighted sum of the values
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class SlotsConfig:
    """How slots are written and forgotten."""

    d_model: int
    segment_length: int = 64  # tokens between two writes: part of the function
    n_slots: int = 32
    n_heads: int = 4
    temperature: float = 0.25  # of the write; below 1 sharpens the choice between keeping and taking
    keep_bias: float = 0.0  # added to a slot's own logit; 0 is the paper, log(segment_length) keeps half at the start
    forget: str = "bmn"  # "bmn": biased normalisation, "norm": normalisation alone, "none": neither
    radius: float | None = None  # of the sphere the slots live on; None is sqrt(d_model), 1.0 the paper's letter
    bias_std: float = 0.01  # of the initial forgetting bias: |v| / radius is the rate of forgetting
    update: str = "replace"  # "gru": a GRU cell decides between the old slot and what was gathered

    def __post_init__(self) -> None:
        if self.d_model < 1 or self.n_heads < 1 or self.d_model % self.n_heads:
            near = self.n_heads * max(1, round(self.d_model / max(1, self.n_heads)))
            raise ConfigError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads;"
                f" use a multiple of {self.n_heads}, such as d_model={near}"
            )
        for name in ("segment_length", "n_slots", "temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above zero, got {getattr(self, name)}")
        if self.radius is not None and self.radius <= 0:
            raise ConfigError(f"radius must be above zero (None means sqrt(d_model)), got {self.radius}")
        if self.forget not in ("bmn", "norm", "none"):
            raise ConfigError(f"forget must be 'bmn', 'norm' or 'none', got {self.forget!r}")
        if self.update not in ("replace", "gru"):
            raise ConfigError(f"update must be 'replace' or 'gru', got {self.update!r}")

    def build(self) -> "SlotWriter":
        return SlotWriter(self)


def few(n_tokens: int, n_slots: int) -> bool:
    """Whether tokens had better be carried into the slots' space than the slots projected: small products are slow ones."""
    return 4 * n_tokens < n_slots


class SlotReader(nn.Module):
    """Cross-attention from tokens to slots. The output projection starts at zero: a model begins without its memory."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = Linear(d_model, d_model, bias=False)
        self.key = Linear(d_model, d_model, bias=False)
        self.value = Linear(d_model, d_model, bias=False)
        self.out = Linear(d_model, d_model, bias=False)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=d_model**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(
        self, x: Float[Tensor, "B L D"], slots: Float[Tensor, "B N D"], reach: Int[Tensor, "B"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Of each row's slots the first `reach` are read, all where it is None."""
        q = split_heads(self.query(x), self.n_heads)
        slots = slots.to(q.dtype)
        if not few(x.shape[1], slots.shape[1]):
            k, v = (split_heads(layer(slots), self.n_heads) for layer in (self.key, self.value))
            return self.out(read_projected(q, k, v, reach))
        key_weight, value_weight = (weight_of(layer).to(q.dtype) for layer in (self.key, self.value))
        return self.out(read_lifted(q, slots, key_weight, value_weight, reach))


class SlotWriter(nn.Module):
    """Keeps N slots: gathers the tokens of a segment, and writes them when the segment is full."""

    def __init__(self, config: SlotsConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.query = Linear(D, D, bias=False)  # of slots
        self.key = Linear(D, D, bias=False)  # of slots and of tokens: one matrix, as printed
        self.value = Linear(D, D, bias=False)  # of tokens; a slot's own value is the slot
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=D**-0.5)
        self.bias = nn.Parameter(torch.randn(config.n_slots, D) * config.bias_std)
        self.bias.no_decay = True  # ty: ignore[missing-attribute]  # its length is the rate of forgetting, which weight decay would change
        self.bias.lr_scale = 0.1  # ty: ignore[missing-attribute]
        self.gru = nn.GRUCell(D, D) if config.update == "gru" else None
        self.radius = config.radius or math.sqrt(D)

    def init_state(self, batch_size: int) -> SlotState:
        """Slots on the sphere, in the direction of their forgetting bias: a stream that has read nothing has forgotten all."""
        c, H = self.config, self.config.n_heads
        bias = self.bias.to(torch.promote_types(self.bias.dtype, torch.float32))
        slots = biased_normalise(bias[None], None, radius=self.radius).expand(batch_size, -1, -1)
        running = self._nothing(slots, batch_size, H, c.n_slots, c.d_model // H)
        return SlotState(slots, *running, torch.zeros(batch_size, dtype=torch.int64))

    @staticmethod
    def _nothing(like: Tensor, B: int, H: int, N: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
        return empty(like, B, H, N, fill=NOTHING), empty(like, B, H, N), empty(like, B, H, N, K)

    def room(self, state: SlotState) -> int:
        """Tokens that every row can read before the first of them closes its segment."""
        return self.config.segment_length - int(state.position.max())

    def forward(self, h: Float[Tensor, "B L D"], state: SlotState) -> SlotState:
        """Take in tokens h [B, L, D], L <= room(state); rows whose segment is then full write their slots."""
        position, dtype = state.position + h.shape[1], state.slots.dtype
        h = h.to(self.key.weight.dtype)
        keys, values = (split_heads(layer(h), self.config.n_heads).to(dtype) for layer in (self.key, self.value))
        with torch.autocast(h.device.type, enabled=False):  # what recurs is float32 at least
            peak, mass, total = self._gather(keys, values, state)
            full = position == self.config.segment_length
            opened = SlotState(state.slots, peak, mass, total, position)
            if not full.any():
                return opened
            closed = SlotState(self._close(opened), *self._nothing(peak, *total.shape), torch.zeros_like(position))
        return closed if full.all() else choose(full, closed, opened)

    def _gather(self, keys: Tensor, values: Tensor, state: SlotState) -> tuple[Tensor, Tensor, Tensor]:
        B, H, N, K = state.total.shape
        query = weight_of(self.query).to(state.slots.dtype)
        if not few(keys.shape[2], N):
            q = split_heads(linear(state.slots, query), H)
            logits = q @ keys.mT
        else:  # few tokens: carry their keys into the slots' space rather than project all slots
            logits = (lift(keys, query) @ state.slots.mT).unflatten(1, (H, -1)).mT
        return gather_tokens(logits / (math.sqrt(K) * self.config.temperature), values, state.peak, state.mass, state.total)

    def _close(self, state: SlotState) -> Tensor:
        c, dtype = self.config, state.slots.dtype
        q, k = (split_heads(linear(state.slots, weight_of(layer).to(dtype)), c.n_heads) for layer in (self.query, self.key))
        own = (q * k).sum(-1) / (math.sqrt(q.shape[-1]) * c.temperature) + c.keep_bias
        slots = close_slots(state.slots, own, state.peak, state.mass, state.total)
        if self.gru is not None:
            weights = (w.to(dtype) for w in (self.gru.weight_ih, self.gru.weight_hh, self.gru.bias_ih, self.gru.bias_hh))
            slots = torch.gru_cell(slots.flatten(0, 1), state.slots.flatten(0, 1), *weights).view_as(slots)
        if c.forget == "none":
            return slots
        return biased_normalise(slots, self.bias.to(dtype) if c.forget == "bmn" else None, radius=self.radius)

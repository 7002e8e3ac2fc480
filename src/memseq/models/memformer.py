"""Memformer, causal: blocks that share one memory of slots, read in every block and written once a segment.

Source: Memformer (Wu et al., arXiv:2010.06891); the decoder-only form, in which tokens of segment s read the slots
written up to segment s - 1. The paper's encoder-decoder is `models/memformer_encdec.py`.

    x  = E[tokens]
    x += Local(LN x)                                 a memory over near tokens: a segment, a sliding window, any config
    x += Read(LN x, M_{s-1})                          cross-attention to the slots, from zero at the start
    x += FFN(LN x)
    h  = LN x,  logits = h E^T
    M_s = BMN(SlotAttention(M_{s-1}, h of segment s)) at the segment's end, through a running softmax (`layers/slots.py`)

`memory="per_layer"` keeps slots for each block, written from that block's output (figure 1b of the 2020 text); `reading` names
the blocks that read, where not all do.
State: the local memories' states, and 4 B N D bytes of slots with the running softmax of the open segment.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.slots import SlotReader, SlotsConfig, SlotState
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.language_model import LanguageModel
from memseq.models.stack import Block, check_stack, init_weights
from memseq.state import State

__all__ = ["MemformerLM", "MemformerLMConfig", "MemformerLMState"]


@dataclass(frozen=True, kw_only=True)
class MemformerLMConfig:
    """`layers` holds the local memory of each block; `slots` says how many slots there are and how they are written."""

    vocab_size: int
    d_model: int
    layers: tuple[Any, ...]
    slots: SlotsConfig
    memory: str = "shared"  # or "per_layer"
    reading: tuple[int, ...] | None = None  # the blocks that read slots, counted from 0; None is all, as in the paper
    ff_mult: float = 4.0  # hidden units of the feedforward, in d_model
    dropout: float = 0.0  # of the embedding and of every residual branch

    def __post_init__(self) -> None:
        check_stack(self)
        if self.slots.d_model != self.d_model:
            raise ConfigError(f"slots has d_model={self.slots.d_model} and the model d_model={self.d_model}; make them equal")
        if self.memory not in ("shared", "per_layer"):
            raise ConfigError(f"memory must be 'shared' or 'per_layer', got {self.memory!r}")
        blocks = range(len(self.layers))
        if self.reading is not None and (not self.reading or sorted(set(self.reading) & set(blocks)) != list(self.reading)):
            raise ConfigError(f"reading must name blocks from 0 to {blocks[-1]} once and in order (None: all), got {self.reading}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "MemformerLMConfig":
        """The language model of a `presets.Size`: a window in every block, one memory of slots for all."""
        window = SlidingWindowConfig(d_model=size.d_model, n_heads=size.n_heads, window=size.window)
        slots = SlotsConfig(d_model=size.d_model, n_heads=size.n_heads, n_slots=size.n_slots, segment_length=size.segment_length)
        return cls(vocab_size=vocab_size, d_model=size.d_model, layers=size.n_layers * (window,), slots=slots)

    def build(self) -> "MemformerLM":
        return MemformerLM(self)


class MemformerLMState(NamedTuple):
    local: tuple[tuple[State, ...], ...]  # of each block
    slots: tuple[SlotState, ...]  # one, or one a reading block


class MemformerLM(LanguageModel[MemformerLMState]):
    def __init__(self, config: MemformerLMConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in config.layers)
        reading = range(len(config.layers)) if config.reading is None else config.reading
        self.reader_of = {block: reader for reader, block in enumerate(reading)}
        self.read_norms = nn.ModuleList(nn.LayerNorm(D) for _ in reading)
        self.reads = nn.ModuleList(SlotReader(D, config.slots.n_heads) for _ in reading)
        self.norm = nn.LayerNorm(D)
        self.writes = nn.ModuleList(config.slots.build() for _ in (reading if config.memory == "per_layer" else [None]))
        self.write_norms = nn.ModuleList(nn.LayerNorm(D) for _ in reading) if config.memory == "per_layer" else nn.ModuleList()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        init_weights(self)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return all(memory.bounded for block in self.blocks for memory in block.memories)

    @property
    def segment_length(self) -> int:
        return self.config.slots.segment_length

    def init_state(self, batch_size: int) -> MemformerLMState:
        local = tuple(block.init_state(batch_size) for block in self.blocks)
        return MemformerLMState(local, tuple(write.init_state(batch_size) for write in self.writes))

    def features(self, tokens: Int[Tensor, "B T"], state: MemformerLMState) -> tuple[Float[Tensor, "B T D"], MemformerLMState]:
        h = []
        while tokens.shape[1] > 0:
            piece, tokens = tokens.tensor_split([self.writes[0].room(state.slots[0])], dim=1)
            y, state = self._read_piece(piece, state)
            h.append(y)
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), state

    def _read_piece(self, tokens: Tensor, state: MemformerLMState) -> tuple[Tensor, MemformerLMState]:
        """Tokens that lie in one segment, in every row."""
        shared = self.config.memory == "shared"
        x = self.dropout(self.embedding(tokens))
        local, slots, readers = [], list(state.slots), zip(self.reads, self.read_norms, strict=True)
        for i, block in enumerate(self.blocks):
            x, states = block.remember(x, state.local[i])
            reader = self.reader_of.get(i)
            if reader is not None:
                read, norm = next(readers)
                x = x + self.dropout(read(norm(x), slots[0 if shared else reader].slots))
            x = block.think(x)
            local.append(states)
            if reader is not None and not shared:
                slots[reader] = self.writes[reader](self.write_norms[reader](x), slots[reader])
        h = self.norm(x)
        if shared:
            slots[0] = self.writes[0](h, slots[0])
        return h, MemformerLMState(tuple(local), tuple(slots))

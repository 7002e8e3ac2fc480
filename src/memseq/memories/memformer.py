"""Memformer's memory: a constant number of slots, read by cross-attention, written by slot attention once a segment.

Source: Memformer (Wu et al., arXiv:2010.06891); as a memory of its own this is figure 1b of the 2020 text, one memory
for each layer. The language model whose layers share one memory is `models/memformer.py`.

    y_t = W_O MHA(q = W_Q x_t, k = W_K M, v = W_V M)      read: all tokens of segment s see M after segment s - 1
    M'  = BMN(SlotAttention(M, x of the segment))          write: when the segment is full (`ops/memformer.py`)

State: the slots, 4 B N D bytes, and the running softmax of the open segment, 4 B N (D + 2 H) bytes; four bytes between
two segments.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.contract import Memory
from memseq.layers.slots import SlotReader, SlotsConfig, SlotState, SlotWriter

__all__ = ["MemformerConfig", "MemformerMemory"]


@dataclass(frozen=True, kw_only=True)
class MemformerConfig(SlotsConfig):
    """A memory of slots as one layer of a stack; the fields are those of `SlotsConfig`."""

    def build(self) -> "MemformerMemory":  # ty: ignore[incompatible-method-override]  # a config of a layer, not of a writer
        return MemformerMemory(self)


class MemformerMemory(Memory[SlotState]):
    def __init__(self, config: MemformerConfig) -> None:
        super().__init__()
        self.config = config
        self.read = SlotReader(config.d_model, config.n_heads)
        self.write = SlotWriter(config)

    def init_state(self, batch_size: int) -> SlotState:
        return self.write.init_state(batch_size)

    def forward(self, x: Float[Tensor, "B T D"], state: SlotState) -> tuple[Float[Tensor, "B T D"], SlotState]:
        y = []
        while x.shape[1] > 0:
            piece, x = x.tensor_split([self.write.room(state)], dim=1)
            y.append(self.read(piece, state.slots))
            state = self.write(piece, state)
        return y[0] if len(y) == 1 else torch.cat(y, dim=1), state

    def advance(self, x: Float[Tensor, "B T D"], state: SlotState) -> SlotState:
        while x.shape[1] > 0:
            piece, x = x.tensor_split([self.write.room(state)], dim=1)
            state = self.write(piece, state)
        return state

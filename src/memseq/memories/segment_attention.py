"""Segment attention: causal self-attention inside the current segment only; nothing passes from one segment to the next.

The plain Transformer's way with a long text (Vaswani et al., arXiv:1706.03762; "vanilla" in Transformer-XL, arXiv:1901.02860),
and the short memory beside a recurrent one, as in Memformer's decoder; positions (RoFormer, arXiv:2104.09864) start anew.

    q_t, k_t, v_t = W x_t                           q and k turned to the position t mod L
    a_ts = softmax_s(q_t . k_s / sqrt(K))           over the tokens s <= t of t's segment
    y_t  = W_O sum_s a_ts v_s

State: keys and values of the open segment, 8 B L D bytes in float32, eight bytes between two segments; and the position in it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.attention import Heads, check_heads
from memseq.layers.rotary import places, shared
from memseq.ops.attention import attend, band
from memseq.state import choose

__all__ = ["SegmentAttentionConfig", "SegmentAttentionMemory", "SegmentAttentionState"]


class SegmentAttentionState(NamedTuple):
    keys: Float[Tensor, "B H L K"]  # slot i holds token i of the open segment, zeros where nothing was read yet
    values: Float[Tensor, "B H L K"]
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class SegmentAttentionConfig:
    d_model: int
    n_heads: int = 4
    segment_length: int = 64  # part of the function
    rotary_base: float = 10000.0
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, self.dropout)
        if self.segment_length < 1:
            raise ConfigError(f"segment_length must be at least 1, got {self.segment_length}")

    def build(self) -> "SegmentAttentionMemory":
        return SegmentAttentionMemory(self)


class SegmentAttentionMemory(Memory[SegmentAttentionState]):
    def __init__(self, config: SegmentAttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = Heads(config.d_model, config.n_heads, config.rotary_base)

    def init_state(self, batch_size: int) -> SegmentAttentionState:
        nothing = empty(self.heads.like, *self.heads.empty_size(batch_size, self.config.segment_length))
        return SegmentAttentionState(nothing, nothing, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: SegmentAttentionState) -> tuple[Float[Tensor, "B T D"], SegmentAttentionState]:
        L = self.config.segment_length
        q, k, v = self.heads(x, places(state.position, x.shape[1], x.device) % L)
        o, at = [], 0
        while at < x.shape[1]:
            left = x.shape[1] - at
            if left >= L and shared(state.position) == 0:  # whole segments, side by side in the batch
                n = left // L * L
                o.append(self._read_whole(*(t[:, :, at : at + n] for t in (q, k, v))))
            else:
                n = min(left, L - int(state.position.max()))
                new_keys, new_values = k[:, :, at : at + n], v[:, :, at : at + n]
                kept = self._append(new_keys, new_values, state)
                o.append(self._read(q[:, :, at : at + n], new_keys, new_values, kept, state))
                state = self._close(kept)
            at += n
        return self.heads.write(o[0] if len(o) == 1 else torch.cat(o, dim=2)), state

    def advance(self, x: Float[Tensor, "B T D"], state: SegmentAttentionState) -> SegmentAttentionState:
        self.check_input(x, state)
        L, start = self.config.segment_length, shared(state.position)
        if start is not None and start + x.shape[1] >= L:  # only the last segment leaves a trace
            x = x[:, x.shape[1] - (start + x.shape[1]) % L :]
            state = self.init_state(x.shape[0])
            if x.shape[1] == 0:
                return state
        k, v = self.heads.remember(x, places(state.position, x.shape[1], x.device) % L)
        while k.shape[2]:
            n = min(k.shape[2], L - int(state.position.max()))
            state = self._close(self._append(k[:, :, :n], v[:, :, :n], state))
            k, v = k[:, :, n:], v[:, :, n:]
        return state

    def read_masked(
        self, x: Float[Tensor, "B T D"], state: SegmentAttentionState, mask: Bool[Tensor, "T S"]
    ) -> tuple[Float[Tensor, "B T D"], SegmentAttentionState]:
        """As `forward` inside one segment, with a mask in place of causality: True where a token of x sees a token of the S read."""
        q, k, v = self.heads(x, places(state.position, x.shape[1], x.device))
        kept = self._append(k, v, state)
        keys, values = kept.keys[:, :, : mask.shape[1]], kept.values[:, :, : mask.shape[1]]
        return self.heads.write(attend(q, keys, values, mask=mask, dropout=self._dropout)), self._close(kept)

    def _read_whole(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        L = self.config.segment_length
        q, k, v = (t.unflatten(2, (-1, L)).flatten(1, 2) for t in (q, k, v))
        o = attend(q, k, v, causal=True, dropout=self._dropout)
        return o.unflatten(1, (self.config.n_heads, -1)).flatten(2, 3)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, kept: SegmentAttentionState, before: SegmentAttentionState) -> Tensor:
        """Read a piece that lies inside the open segment of every row."""
        n, start = q.shape[2], shared(before.position)
        if start == 0:
            return attend(q, k, v, causal=True, dropout=self._dropout)
        end = int(kept.position.max())
        keys, values = kept.keys[:, :, :end], kept.values[:, :, :end]
        if start is not None:
            mask = band(n, end, None, device=q.device) if n > 1 else None
        else:
            own = before.position[:, None] + torch.arange(n)  # the slot of each query
            mask = (torch.arange(end) <= own[..., None])[:, None].to(q.device)
        return attend(q, keys, values, mask=mask, dropout=self._dropout)

    def _append(self, k: Tensor, v: Tensor, state: SegmentAttentionState) -> SegmentAttentionState:
        n, start = k.shape[2], shared(state.position)
        if start is not None:
            keys, values = (old.slice_scatter(new, 2, start, start + n) for old, new in ((state.keys, k), (state.values, v)))
        else:
            slots = (state.position[:, None] + torch.arange(n)).to(k.device)[:, None, :, None].expand_as(k)
            keys, values = state.keys.scatter(2, slots, k), state.values.scatter(2, slots, v)
        return SegmentAttentionState(keys, values, state.position + n)

    def _close(self, state: SegmentAttentionState) -> SegmentAttentionState:
        """Rows whose segment is full forget it."""
        full = state.position == self.config.segment_length
        if not full.any():
            return state
        closed = self.init_state(len(full))
        return closed if full.all() else choose(full, closed, state)

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

"""Full causal attention: every token attends to all tokens before it; what is kept grows with the stream.

Source: the Transformer (Vaswani et al., arXiv:1706.03762), positions by RoFormer (arXiv:2104.09864). The upper bound that
bounded memories are measured against.

    q_t, k_t, v_t = W x_t                           q and k turned to the absolute position t
    a_ts = softmax_s(q_t . k_s / sqrt(K))           over all s <= t that are kept
    y_t  = W_O sum_s a_ts v_s

Tokens are kept in blocks. A full block is closed and never touched again; reading copies only the open block, and two
calls in a row share the closed ones. With a `capacity` the oldest block is dropped when a new one would exceed it: a token
in block i sees the blocks above i - capacity / block_size, so between capacity - block_size + 1 and capacity tokens.

State: rotated keys and values, 8 B D bytes a token in float32: growing without a capacity, fixed with one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.attention import Heads, check_heads
from memseq.layers.rotary import places, shared
from memseq.ops.attention import attend, attention_with_lse, band, merge
from memseq.state import select, stack

__all__ = ["AttentionConfig", "AttentionMemory", "AttentionState"]


class AttentionState(NamedTuple):
    closed_keys: Float[Tensor, "B C H K"]  # oldest first, zeros past a row's own closed blocks
    closed_values: Float[Tensor, "B C H K"]
    open_keys: Float[Tensor, "B block H K"]  # slot i holds token i of the open block
    open_values: Float[Tensor, "B block H K"]
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    d_model: int
    n_heads: int = 4
    capacity: int | None = None  # tokens kept at most; None keeps all
    block_size: int = 128  # tokens dropped at once where there is a capacity; without one it is speed only
    rotary_base: float = 10000.0
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, self.dropout)
        if self.block_size < 1:
            raise ConfigError(f"block_size must be at least 1, got {self.block_size}")
        if self.capacity is not None and (self.capacity < 1 or self.capacity % self.block_size):
            near = self.block_size * max(1, round(self.capacity / self.block_size))
            raise ConfigError(
                f"capacity={self.capacity} is not made of whole blocks of block_size={self.block_size};"
                f" use a multiple, such as capacity={near}, or None to keep every token"
            )

    def build(self) -> "AttentionMemory":
        return AttentionMemory(self)


class AttentionMemory(Memory[AttentionState]):
    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = Heads(config.d_model, config.n_heads, config.rotary_base)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.config.capacity is not None

    def init_state(self, batch_size: int) -> AttentionState:
        H, K = self.heads.n_heads, self.heads.key_size
        block = self.config.block_size
        closed = empty(self.heads.like, batch_size, (self.config.capacity or block) - block, H, K)
        opened = empty(self.heads.like, batch_size, block, H, K)
        return AttentionState(closed, closed, opened, opened, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: AttentionState) -> tuple[Float[Tensor, "B T D"], AttentionState]:
        q, k, v = self.heads(x, places(state.position, x.shape[1], x.device))
        state, o = self._trim(state), []
        while q.shape[2]:
            room = self._room(state)
            n = q.shape[2] if self._at_once(state) else min(room, q.shape[2])
            if n <= room:
                filled = self._fill(k[:, :, :n], v[:, :, :n], state)
                o.append(self._read(q[:, :, :n], filled))
                state = self._close(filled)
            else:
                o.append(self._read_across(q, k, v, state))
                state = self._extend(k, v, state)
            q, k, v = q[:, :, n:], k[:, :, n:], v[:, :, n:]
        return self.heads.write(o[0] if len(o) == 1 else torch.cat(o, dim=2)), state

    def advance(self, x: Float[Tensor, "B T D"], state: AttentionState) -> AttentionState:
        self.check_input(x, state)
        k, v = self.heads.remember(x, places(state.position, x.shape[1], x.device))
        state = self._trim(state)
        if self._at_once(state):
            return self._extend(k, v, state)
        while k.shape[2]:
            n = min(k.shape[2], self._room(state))
            state = self._close(self._fill(k[:, :, :n], v[:, :, :n], state))
            k, v = k[:, :, n:], v[:, :, n:]
        return state

    def _at_once(self, state: AttentionState) -> bool:
        """Whether any number of tokens can be read at once: no block is dropped on the way, and all rows close theirs together."""
        return self.config.capacity is None and shared(state.position) is not None

    def _room(self, state: AttentionState) -> int:
        """Tokens that fit into the open block of every row."""
        return self.config.block_size - int((state.position % self.config.block_size).max())

    def _closed(self, position: Tensor) -> Tensor:
        """Tokens in the closed blocks of each row."""
        closed = position // self.config.block_size * self.config.block_size
        return closed if self.config.capacity is None else closed.clamp(max=self.config.capacity - self.config.block_size)

    def _trim(self, state: AttentionState) -> AttentionState:
        """Rows that were taken out of a longer batch leave the others' length behind."""
        longest = int(self._closed(state.position).max())
        if self.config.capacity is not None or state.closed_keys.shape[1] == longest:
            return state
        keys, values = (t[:, :longest].clone() for t in (state.closed_keys, state.closed_values))
        return state._replace(closed_keys=keys, closed_values=values)

    def _read(self, q: Tensor, filled: AttentionState) -> Tensor:
        """Queries of tokens that were just filled in: over the closed blocks and, up to themselves, over the open one."""
        n, before = q.shape[2], filled.position - q.shape[2]
        closed, own = self._closed(before), before % self.config.block_size
        c, o = int(closed.max()), int(own.max()) + n
        near = [t[:, :o].transpose(1, 2) for t in (filled.open_keys, filled.open_values)]
        if c == 0 and o == n:
            return attend(q, *near, causal=True, dropout=self._dropout)
        if shared(before) is not None:
            mask = band(n, c + o, None, device=q.device) if n > 1 else None
        else:
            in_closed = (torch.arange(c) < closed[:, None])[:, None].expand(-1, n, -1)
            in_open = torch.arange(o) <= (own[:, None] + torch.arange(n))[..., None]
            mask = torch.cat([in_closed, in_open], dim=2)[:, None].to(q.device)
        if c == 0:
            return attend(q, *near, mask=mask, dropout=self._dropout)
        far = [t[:, :c].transpose(1, 2) for t in (filled.closed_keys, filled.closed_values)]
        if n > 1 or self._dropout:
            keys, values = (torch.cat(pair, dim=2) for pair in zip(far, near, strict=True))
            return attend(q, keys, values, mask=mask, dropout=self._dropout)
        # one token: do not copy the whole past to read it once
        far_mask, near_mask = (None, None) if mask is None else (mask[..., :c], mask[..., c:])
        q = q.to(far[0].dtype)
        return merge(*attention_with_lse(q, *far, mask=far_mask), *attention_with_lse(q, *near, mask=near_mask))[0]

    def _read_across(self, q: Tensor, k: Tensor, v: Tensor, state: AttentionState) -> Tensor:
        """Queries of more tokens than the open block has room for, where all rows share their position."""
        at = int(state.position[0]) % self.config.block_size
        if len(state.closed_keys[0]) + at == 0:
            return attend(q, k, v, causal=True, dropout=self._dropout)
        parts = ((state.closed_keys, state.open_keys, k), (state.closed_values, state.open_values, v))
        keys, values = (torch.cat([closed, opened[:, :at], new.transpose(1, 2)], dim=1).transpose(1, 2) for closed, opened, new in parts)
        return attend(q, keys, values, mask=band(q.shape[2], keys.shape[2], None, device=q.device), dropout=self._dropout)

    def _extend(self, k: Tensor, v: Tensor, state: AttentionState) -> AttentionState:
        """Any number of tokens, where all rows share their position: what fills blocks on its way is closed at once."""
        n, first = k.shape[2], self._room(state)
        state = self._close(self._fill(k[:, :, :first], v[:, :, :first], state))
        whole = max(0, n - first) // self.config.block_size * self.config.block_size
        if whole:
            closed = ((state.closed_keys, k), (state.closed_values, v))
            keys, values = (torch.cat([old, new[:, :, first : first + whole].transpose(1, 2)], dim=1) for old, new in closed)
            state = state._replace(closed_keys=keys, closed_values=values, position=state.position + whole)
        return self._fill(k[:, :, first + whole :], v[:, :, first + whole :], state) if first + whole < n else state

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0

    def _fill(self, k: Tensor, v: Tensor, state: AttentionState) -> AttentionState:
        """New tokens into the open block of every row, where they fit."""
        n, start = k.shape[2], shared(state.position)
        pairs = [(state.open_keys, k.transpose(1, 2)), (state.open_values, v.transpose(1, 2))]
        if start is not None:
            at = start % self.config.block_size
            opened = [old.slice_scatter(new, 1, at, at + n) for old, new in pairs]
        else:
            slots = (state.position % self.config.block_size)[:, None] + torch.arange(n)
            slots = slots.to(k.device)[..., None, None].expand_as(pairs[0][1])
            opened = [old.scatter(1, slots, new) for old, new in pairs]
        return state._replace(open_keys=opened[0], open_values=opened[1], position=state.position + n)

    def _close(self, state: AttentionState) -> AttentionState:
        """Rows whose open block is full move it to their closed ones, and drop the oldest where there is no room."""
        block, start = self.config.block_size, shared(state.position)
        if (state.position % block).all():
            return state
        if start is None:
            return stack([self._close(select(state, slice(row, row + 1))) for row in range(len(state.position))])
        before, after = int(self._closed(state.position - block)[0]), int(self._closed(state.position)[0])
        fresh = self.init_state(len(state.position))
        closed = []
        for old, new in ((state.closed_keys, state.open_keys), (state.closed_values, state.open_values)):
            kept = torch.cat([old[:, before + block - after : before], new[:, :after]], dim=1)
            closed.append(
                kept
                if self.config.capacity is None
                else torch.cat([kept, old.new_zeros(()).expand(len(old), old.shape[1] - after, *old.shape[2:])], dim=1)
            )
        return AttentionState(*closed, fresh.open_keys, fresh.open_values, state.position)

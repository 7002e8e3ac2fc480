"""Sliding-window attention: every token attends to itself and to the W - 1 tokens before it.

Source: Longformer (Beltagy et al., arXiv:2004.05150) and Mistral 7B (Jiang et al., arXiv:2310.06825) for the causal window;
positions by RoFormer (arXiv:2104.09864). The baseline of every bounded memory.

    q_t, k_t, v_t = W x_t                           q and k turned to the absolute position t
    a_ts = softmax_s(q_t . k_s / sqrt(K))           over t - W < s <= t
    y_t  = W_O sum_s a_ts v_s

State: the rotated keys and the values of the last W tokens, newest last, 8 B W D bytes in float32, and the position.
Gradients flow through the window exactly.
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
from memseq.ops.attention import attend, band, windowed

__all__ = ["SlidingWindowConfig", "SlidingWindowMemory", "SlidingWindowState"]


class SlidingWindowState(NamedTuple):
    keys: Float[Tensor, "B H W K"]  # newest last, zeros where nothing was read yet
    values: Float[Tensor, "B H W K"]
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig:
    d_model: int
    n_heads: int = 4
    window: int = 128  # tokens a token sees, itself included
    rotary_base: float = 10000.0
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, self.dropout)
        if self.window < 1:
            raise ConfigError(f"window must be at least 1 (a token sees itself), got {self.window}")

    def build(self) -> "SlidingWindowMemory":
        return SlidingWindowMemory(self)


class SlidingWindowMemory(Memory[SlidingWindowState]):
    def __init__(self, config: SlidingWindowConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = Heads(config.d_model, config.n_heads, config.rotary_base)

    def init_state(self, batch_size: int) -> SlidingWindowState:
        nothing = empty(self.heads.like, *self.heads.empty_size(batch_size, self.config.window))
        return SlidingWindowState(nothing, nothing, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: SlidingWindowState) -> tuple[Float[Tensor, "B T D"], SlidingWindowState]:
        q, k, v = self.heads(x, places(state.position, x.shape[1], x.device))
        after = self._shift(k, v, state)
        o = self._read_one(q, after) if x.shape[1] == 1 else self._read(q, k, v, state)
        return self.heads.write(o), after

    def advance(self, x: Float[Tensor, "B T D"], state: SlidingWindowState) -> SlidingWindowState:
        self.check_input(x, state)
        T, W = x.shape[1], self.config.window
        k, v = self.heads.remember(x[:, -W:], places(state.position + max(0, T - W), min(T, W), x.device))
        return self._shift(k, v, state)._replace(position=state.position + T)

    def _shift(self, k: Tensor, v: Tensor, state: SlidingWindowState) -> SlidingWindowState:
        """The last W of what was kept and what was read."""
        T, W = k.shape[2], self.config.window
        if T < W:
            keys, values = torch.cat([state.keys[:, :, T:], k], dim=2), torch.cat([state.values[:, :, T:], v], dim=2)
        else:  # clone: a view would keep all T alive
            keys, values = (t[:, :, -W:].clone(memory_format=torch.contiguous_format) for t in (k, v))
        return SlidingWindowState(keys, values, state.position + T)

    def _read_one(self, q: Tensor, after: SlidingWindowState) -> Tensor:
        """One token sees exactly what is kept after it: no key is copied but by the shift."""
        W, end = self.config.window, shared(after.position)
        n = min(W, int(after.position.max()) if end is None else end)
        mask = _filled(after.position, n, q.device) if end is None and int(after.position.min()) < n else None
        keys, values = (after.keys, after.values) if n == W else (after.keys[:, :, -n:], after.values[:, :, -n:])
        return attend(q, keys, values, mask=mask, dropout=self._dropout)

    def _read(self, q: Tensor, k: Tensor, v: Tensor, state: SlidingWindowState) -> Tensor:
        T, W = k.shape[2], self.config.window
        block = max(W, 64)  # speed only; narrower blocks would make many small products
        first = min(T, block)
        seen = state.position.clamp(max=W - 1)
        n, differ = int(seen.max()), shared(seen) is None
        if n == 0 and first <= W:
            o = attend(q[:, :, :first], k[:, :, :first], v[:, :, :first], causal=True, dropout=self._dropout)
        else:
            keys, values = (
                torch.cat([kept[:, :, W - n :], new[:, :, :first]], dim=2) for kept, new in ((state.keys, k), (state.values, v))
            )
            mask = band(first, n + first, W, device=q.device)
            if differ:
                mask = mask & torch.cat([_filled(seen, n, q.device), mask.new_ones(len(seen), 1, 1, first)], dim=-1)
            o = attend(q[:, :, :first], keys, values, mask=mask, dropout=self._dropout)
        if first == T:
            return o
        return torch.cat([o, windowed(q, k, v, start=first, window=W, block=block, dropout=self._dropout)], dim=2)

    @property
    def _dropout(self) -> float:
        return self.config.dropout if self.training else 0.0


def _filled(seen: Tensor, width: int, device: torch.device) -> Tensor:
    """Which of the last `width` slots hold a token of the stream: [B, 1, 1, width]."""
    return (torch.arange(width) >= width - seen[:, None])[:, None, None].to(device)

"""Persistent tokens: learned, always in sight of every query, at no position; and attention to them beside a window or a segment.

Source: the persistent memory of Titans (Behrouz et al., arXiv:2501.00663), after All-attention (Sukhbaatar et al., arXiv:1907.01470).

    P [N, D]                                 learned; no gradient path to what is read
    o = merge(softmax attention of q to P, softmax attention of the rotated q to rotated near keys)      one softmax over both

Queries meet P un-rotated, so that what P says does not depend on how long the stream is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import empty
from memseq.layers.attention import Heads
from memseq.layers.rotary import places, rotate
from memseq.ops.attention import attention_with_lse, band, merge

__all__ = ["PersistentHeads", "PersistentWindow", "WindowState"]


class PersistentHeads(Heads):
    """Queries, keys and values of tokens, and keys and values of P; both under the same projections."""

    def __init__(self, d_model: int, n_heads: int, n_persistent: int, rotary_base: float = 10000.0) -> None:
        super().__init__(d_model, n_heads, rotary_base)
        self.persistent = nn.Parameter(torch.randn(n_persistent, d_model))  # of the size of normalised inputs

    def queries(
        self, x: Float[Tensor, "B T D"], positions: Int[Tensor, "*B T"]
    ) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
        """Un-rotated and rotated."""
        q = F.linear(x, self.inputs.weight[: x.shape[2]]).unflatten(-1, (self.n_heads, self.key_size))
        turned = rotate(q, self.rotary(positions, x.dtype)[..., None, :])
        return self._kept(q), self._kept(turned)

    def attend(
        self,
        q: Float[Tensor, "B H T K"],
        turned: Float[Tensor, "B H T K"],
        k: Float[Tensor, "B H S K"],
        v: Float[Tensor, "B H S K"],
        mask: Tensor,
    ) -> Float[Tensor, "B H T K"]:
        """One softmax over P and the keys that `mask` shows."""
        o, lse = attention_with_lse(turned, k, v, mask=mask)
        if not len(self.persistent):
            return o
        kv = F.linear(self.persistent, self.inputs.weight[q.shape[1] * q.shape[3] :]).to(k.dtype)
        p_k, p_v = kv.unflatten(-1, (2, self.n_heads, self.key_size)).permute(1, 2, 0, 3).unsqueeze(1).expand(-1, len(q), -1, -1, -1)
        return merge(o, lse, *attention_with_lse(q, p_k, p_v))[0]


class WindowState(NamedTuple):
    keys: Float[Tensor, "B H W K"]  # rotated, newest last, zeros where nothing was read yet
    values: Float[Tensor, "B H W K"]
    position: Int[Tensor, "B"]  # tokens read, on the host


class PersistentWindow(nn.Module):
    """`y, state = attention(x, state)`: every token sees P, itself and the `window` - 1 tokens before it."""

    def __init__(self, d_model: int, n_heads: int, window: int, n_persistent: int) -> None:
        super().__init__()
        self.window = window
        self.heads = PersistentHeads(d_model, n_heads, n_persistent)

    def init_state(self, batch_size: int) -> WindowState:
        nothing = empty(self.heads.like, *self.heads.empty_size(batch_size, self.window))
        return WindowState(nothing, nothing, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: WindowState) -> tuple[Float[Tensor, "B T D"], WindowState]:
        o = []
        for piece in x.split(max(self.window, 64), dim=1):
            n, at = piece.shape[1], places(state.position, piece.shape[1], x.device)
            q, turned = self.heads.queries(piece, at)
            new = self.heads.remember(piece, at)
            k, v = (torch.cat([kept, z], dim=2) for kept, z in zip(state[:2], new, strict=True))
            filled = torch.arange(-self.window, n) >= -state.position[:, None]  # which keys are tokens of the row's own stream
            mask = band(n, self.window + n, self.window, device=x.device) & filled[:, None, None].to(x.device)
            o.append(self.heads.attend(q, turned, k, v, mask))
            state = self._shifted(k, v, state.position + n)
        return self.heads.write(torch.cat(o, dim=2) if len(o) > 1 else o[0]), state

    def advance(self, x: Float[Tensor, "B T D"], state: WindowState) -> WindowState:
        T, kept = x.shape[1], min(x.shape[1], self.window)
        new = self.heads.remember(x[:, T - kept :], places(state.position + (T - kept), kept, x.device))
        k, v = (torch.cat([old[:, :, kept:], z], dim=2) for old, z in zip(state[:2], new, strict=True))
        return WindowState(k, v, state.position + T)

    def _shifted(self, k: Tensor, v: Tensor, position: Tensor) -> WindowState:
        # clone: a view would keep all keys of the piece alive
        return WindowState(*(z[:, :, -self.window :].clone(memory_format=torch.contiguous_format) for z in (k, v)), position)

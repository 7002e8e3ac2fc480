"""What Transformer-XL and its children share: attention by relative position over inputs kept before an open segment.

    c = [memory; opened; x]                                       inputs in their order, a row's own alone
    q_i = W_q x_i,   k_j = W_k c_j,   v_j = W_v c_j
    A_ij = ((q_i + u) . k_j + (q_i + v) . W_R R_(i-j)) / sqrt(K)  R: sinusoids of distances in c (`ops/relative.py`)
    y_i = W_O sum_j softmax_j(A_ij) v_j

Source: Transformer-XL (Dai et al., arXiv:1901.02860), §3.3. A subclass says how much of its memory a row holds and what becomes of
a segment that is full. Few queries carry the projections to themselves (W_k^T q) and read inputs as they are; many project c.
"""

from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.layers.rotary import shared
from memseq.ops.attention import band
from memseq.ops.linear import linear
from memseq.ops.relative import relative_shift, sinusoids
from memseq.state import choose

__all__ = ["RelativeHeads", "RelativeSegments", "check_segments"]

S = TypeVar("S", bound=Any)


def check_segments(config: Any) -> None:
    """Raise `ConfigError` where the numbers that all these memories have make no sense."""
    check_heads(config.d_model, config.n_heads, config.dropout)
    if config.d_model % 2:
        raise ConfigError(f"the sinusoids of distances need an even d_model, got {config.d_model}")
    if config.gradient not in ("stopped", "full"):
        raise ConfigError(f"gradient must be 'stopped' or 'full', got {config.gradient!r}")
    if config.segment_length < 1:
        raise ConfigError(f"segment_length must be at least 1, got {config.segment_length}")
    if config.clamp is not None and config.clamp < 0:
        raise ConfigError(f"clamp must be a distance of at least 0, or None, got {config.clamp}")


class RelativeHeads(nn.Module):
    """Attention of x [B, n, D] to a context [B, S, D] that ends with x; `count` distances differ, those above `clamp` are one."""

    distances: Tensor

    def __init__(self, d_model: int, n_heads: int, *, count: int, clamp: int | None, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.count, self.clamp, self.dropout = n_heads, count, clamp, dropout
        self.inputs = Linear(d_model, 3 * d_model, bias=False)  # queries, keys, values
        self.relative = Linear(d_model, d_model, bias=False)  # W_R
        self.out = Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.randn(n_heads, d_model // n_heads) * 0.02)  # u
        self.position_bias = nn.Parameter(torch.randn(n_heads, d_model // n_heads) * 0.02)  # v
        for layer in (self.inputs, self.relative, self.out):
            nn.init.normal_(layer.weight, std=d_model**-0.5)
        self.register_buffer("distances", self._embedded(), persistent=False)

    def _embedded(self) -> Tensor:
        """The embeddings of all distances, the farthest first: the order in which a query meets its keys."""
        weight = self.inputs.weight
        distances = torch.arange(self.count, device=weight.device).flip(0).clamp(max=self.count if self.clamp is None else self.clamp)
        return sinusoids(distances, weight.shape[1]).to(weight.dtype)

    def _apply(self, fn, recurse=True):
        """A change of dtype makes the embeddings anew rather than round or widen what was rounded."""
        super()._apply(fn, recurse)
        self.distances = self._embedded()
        return self

    def forward(
        self, x: Float[Tensor, "B n D"], context: Float[Tensor, "B S D"], visible: Bool[Tensor, "*B n S"]
    ) -> Float[Tensor, "B n D"]:
        """Heads side by side, before W_O."""
        _, n, D = x.shape
        H, S = self.n_heads, context.shape[1]
        distances = self.distances[-min(S, len(self.distances)) :]  # no more than there are
        W_q, W_k, W_v = self.inputs.weight.chunk(3)
        q = linear(x, W_q).unflatten(-1, (H, -1))
        to_content, to_position = ((q + bias).transpose(1, 2) for bias in (self.content_bias, self.position_bias))
        few = n * H < D  # then (W^T q) . c costs less than q . (W c)
        if few:
            content = torch.einsum("b h n k, h k d -> b h n d", to_content, W_k.unflatten(0, (H, -1))) @ context.mT[:, None]
            position = torch.einsum("b h n k, h k d -> b h n d", to_position, self.relative.weight.unflatten(0, (H, -1))) @ distances.mT
        else:
            k, v = linear(context, self.inputs.weight[D:]).unflatten(-1, (2, H, D // H)).permute(2, 0, 3, 1, 4)
            content = to_content @ k.mT
            position = to_position @ self.relative(distances).unflatten(-1, (H, -1)).permute(1, 2, 0)
        scores = (content + relative_shift(position, S)) * (D // H) ** -0.5
        scores = scores.masked_fill(~visible, -torch.inf)
        weights = F.dropout(scores.softmax(-1), self.dropout, self.training).to(context.dtype)
        if few:
            o = torch.einsum("b h n d, h k d -> b h n k", weights @ context[:, None], W_v.unflatten(0, (H, -1)))
        else:
            o = weights.to(v.dtype) @ v
        return o.transpose(1, 2).flatten(2)


class RelativeSegments(Memory[S]):
    """A memory whose state has `memory` [B, M, D] (newest last), `opened` [B, L, D] (slot i: input i of the open segment) and
    `position` [B]. A subclass defines `_held` and `_close`; `reach` is how many inputs a token sees, None for all that are held."""

    def __init__(self, config: Any, *, memory_size: int, count: int, reach: int | None) -> None:
        super().__init__()
        self.config, self.memory_size, self.reach = config, memory_size, reach
        self.heads = RelativeHeads(config.d_model, config.n_heads, count=count, clamp=config.clamp, dropout=config.dropout)

    def _held(self, closed: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Inputs in the memory of a row that has closed so many segments."""
        raise TypeError(f"{type(self).__name__} must define _held(closed)")

    def _close(self, state: S) -> S:
        """The state after the open segment, which is full in every row."""
        raise TypeError(f"{type(self).__name__} must define _close(state)")

    def _nothing(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """An empty memory and an empty segment."""
        D, like = self.config.d_model, self.heads.inputs.weight
        return empty(like, batch_size, self.memory_size, D), empty(like, batch_size, self.config.segment_length, D)

    def forward(self, x: Float[Tensor, "B T D"], state: S) -> tuple[Float[Tensor, "B T D"], S]:
        o = []
        while x.shape[1]:
            piece, x = x.tensor_split([self._room(state)], dim=1)
            o.append(self._read(piece, state))
            state = self._append(piece, state)
        return self.heads.out(o[0] if len(o) == 1 else torch.cat(o, dim=1)), state

    def advance(self, x: Float[Tensor, "B T D"], state: S) -> S:
        self.check_input(x, state)
        while x.shape[1]:
            piece, x = x.tensor_split([self._room(state)], dim=1)
            state = self._append(piece, state)
        return state

    def _room(self, state: S) -> int:
        """Tokens that every row can read before the first of them comes to its border."""
        return self.config.segment_length - int((state.position % self.config.segment_length).max())

    def _read(self, x: Tensor, state: S) -> Tensor:
        before, own = self._before(x, state)
        context = torch.cat([before, x.to(before.dtype)], dim=1)
        visible = band(x.shape[1], context.shape[1], self.reach, device=x.device)
        return self.heads(x, context, visible if own is None else visible & own)

    def _before(self, x: Tensor, state: S) -> tuple[Tensor, Tensor | None]:
        """The inputs before x that its first token may see, newest last, and where rows differ which of them are a row's own."""
        L, M, n = self.config.segment_length, self.memory_size, x.shape[1]
        own = state.position % L  # inputs of the open segment
        held = own + self._held(state.position // L)
        if self.reach is not None:
            held = held.clamp(max=self.reach - 1)
        most, start = int(held.max()), shared(state.position)
        if start is not None:
            opened = int(own[0])
            from_memory = max(0, most - opened)
            parts = (state.memory[:, M - from_memory :], state.opened[:, max(0, opened - most) : opened])
            return torch.cat(parts, dim=1), None
        kept = torch.cat([state.memory, state.opened], dim=1)
        slots = (M + own - most)[:, None] + torch.arange(most)
        slots = slots.clamp(min=0).to(x.device)[..., None].expand(-1, -1, x.shape[2])
        mask = torch.arange(most + n) >= (most - held)[:, None]
        return kept.gather(1, slots), mask[:, None, None].to(x.device)

    def _append(self, x: Tensor, state: S) -> S:
        L, n, start = self.config.segment_length, x.shape[1], shared(state.position)
        own, x = state.position % L, x.to(state.opened.dtype)
        if start is not None:
            opened = state.opened.slice_scatter(x, 1, start % L, start % L + n)
        else:
            slots = (own[:, None] + torch.arange(n)).to(x.device)[..., None].expand_as(x)
            opened = state.opened.scatter(1, slots, x)
        state = state._replace(opened=opened, position=state.position + n)
        full = own + n == L
        if not full.any():
            return state
        closed = self._close(state)
        return closed if full.all() else choose(full, closed, state)

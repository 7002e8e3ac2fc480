"""Transformer-XL: attention over a cache of earlier inputs and the current segment, with relative positions.

Source: Transformer-XL (Dai et al., arXiv:1901.02860), equations of §3.3; the mixer alone, norms and feedforward belong to the
model around it. Segments have L tokens; m holds the W inputs before the current segment, cut from their graph (SG).

    c = [SG(m); x_segment]                                        the context, W + i + 1 inputs at token i
    q_i = W_q x_i,   k_j = W_k c_j,   v_j = W_v c_j
    A_ij = ((q_i + u) . k_j + (q_i + v) . W_R R_(i-j)) / sqrt(K)  R: sinusoids of distances (`ops/relative.py`)
    y_i = W_O sum_j softmax_j(A_ij) v_j

visible = "sliding": j > i - W, every token sees W positions, itself included (the paper's `same_length`).
visible = "segment": all of c, W to W + L - 1 positions before i; the oldest leave at a segment's border only.
u and v are the layer's own. The gradient ends at a segment's border, wherever calls were cut; gradient = "full" lets it pass.

State: the inputs before the segment and those of the open segment, 4 B (W + L) D bytes in float32, 4 B W D at a border.
Few queries carry the projections to themselves (W_k^T q) and read inputs as they are; many project the context.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.rotary import shared
from memseq.ops.attention import band
from memseq.ops.relative import relative_shift, sinusoids
from memseq.state import choose

__all__ = ["TransformerXLConfig", "TransformerXLMemory", "TransformerXLState"]


class TransformerXLState(NamedTuple):
    memory: Float[Tensor, "B W D"]  # inputs before the open segment, newest last
    opened: Float[Tensor, "B L D"]  # slot i holds input i of the open segment
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig:
    d_model: int
    n_heads: int = 4
    window: int = 128  # inputs kept before a segment; with visible="sliding" the positions a token sees, itself included
    segment_length: int = 64  # tokens between two borders, where the gradient ends
    visible: Literal["sliding", "segment"] = "sliding"
    gradient: Literal["stopped", "full"] = "stopped"  # at a border
    clamp: int | None = None  # distances above it share one embedding
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, self.dropout)
        if self.d_model % 2:
            raise ConfigError(f"the sinusoids of distances need an even d_model, got {self.d_model}")
        if self.visible not in ("sliding", "segment"):
            raise ConfigError(f"visible must be 'sliding' or 'segment', got {self.visible!r}")
        if self.gradient not in ("stopped", "full"):
            raise ConfigError(f"gradient must be 'stopped' or 'full', got {self.gradient!r}")
        if self.window < (1 if self.visible == "sliding" else 0):
            raise ConfigError(f"window must be at least 1, or 0 with visible='segment' (independent segments), got {self.window}")
        if self.segment_length < 1:
            raise ConfigError(f"segment_length must be at least 1, got {self.segment_length}")
        if self.clamp is not None and self.clamp < 0:
            raise ConfigError(f"clamp must be a distance of at least 0, or None, got {self.clamp}")

    def build(self) -> "TransformerXLMemory":
        return TransformerXLMemory(self)


class TransformerXLMemory(Memory[TransformerXLState]):
    distances: Tensor

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.config = config
        D, H = config.d_model, config.n_heads
        self.inputs = nn.Linear(D, 3 * D, bias=False)  # queries, keys, values
        self.relative = nn.Linear(D, D, bias=False)  # W_R
        self.out = nn.Linear(D, D, bias=False)
        self.content_bias = nn.Parameter(torch.randn(H, D // H) * 0.02)  # u
        self.position_bias = nn.Parameter(torch.randn(H, D // H) * 0.02)  # v
        for layer in (self.inputs, self.relative, self.out):
            nn.init.normal_(layer.weight, std=D**-0.5)
        self.register_buffer("distances", self._embedded(), persistent=False)

    def _embedded(self) -> Tensor:
        """The embeddings of all distances, the farthest first: the order in which a query meets its keys."""
        c, weight = self.config, self.inputs.weight
        count = c.window if c.visible == "sliding" else c.window + c.segment_length
        distances = torch.arange(count, device=weight.device).flip(0).clamp(max=count if c.clamp is None else c.clamp)
        return sinusoids(distances, c.d_model).to(weight.dtype)

    def _apply(self, fn, recurse=True):
        """A change of dtype makes the embeddings anew rather than round or widen what was rounded."""
        super()._apply(fn, recurse)
        self.distances = self._embedded()
        return self

    def init_state(self, batch_size: int) -> TransformerXLState:
        c, weight = self.config, self.inputs.weight
        memory, opened = (empty(weight, batch_size, n, c.d_model) for n in (c.window, c.segment_length))
        return TransformerXLState(memory, opened, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: TransformerXLState) -> tuple[Float[Tensor, "B T D"], TransformerXLState]:
        o = []
        while x.shape[1]:
            piece, x = x.tensor_split([self._room(state)], dim=1)
            o.append(self._read(piece, state))
            state = self._append(piece, state)
        return self.out(o[0] if len(o) == 1 else torch.cat(o, dim=1)), state

    def advance(self, x: Float[Tensor, "B T D"], state: TransformerXLState) -> TransformerXLState:
        self.check_input(x, state)
        while x.shape[1]:
            piece, x = x.tensor_split([self._room(state)], dim=1)
            state = self._append(piece, state)
        return state

    def _room(self, state: TransformerXLState) -> int:
        """Tokens that every row can read before the first of them comes to its border."""
        return self.config.segment_length - int((state.position % self.config.segment_length).max())

    def _read(self, x: Tensor, state: TransformerXLState) -> Tensor:
        B, n, D = x.shape
        H, sliding, W = self.config.n_heads, self.config.visible == "sliding", self.config.window
        before, mask = self._before(x, state)
        context = torch.cat([before, x.to(before.dtype)], dim=1)
        S = context.shape[1]
        distances = self.distances[-min(S, len(self.distances)) :]  # no more than there are
        W_q, W_k, W_v = self.inputs.weight.chunk(3)
        q = F.linear(x, W_q).unflatten(-1, (H, -1))
        to_content, to_position = ((q + bias).transpose(1, 2) for bias in (self.content_bias, self.position_bias))
        few = n * H < D  # then (W^T q) . c costs less than q . (W c)
        if few:
            content = torch.einsum("b h n k, h k d -> b h n d", to_content, W_k.unflatten(0, (H, -1))) @ context.mT[:, None]
            position = torch.einsum("b h n k, h k d -> b h n d", to_position, self.relative.weight.unflatten(0, (H, -1))) @ distances.mT
        else:
            k, v = F.linear(context, self.inputs.weight[D:]).unflatten(-1, (2, H, D // H)).permute(2, 0, 3, 1, 4)
            content = to_content @ k.mT
            position = to_position @ self.relative(distances).unflatten(-1, (H, -1)).permute(1, 2, 0)
        scores = (content + relative_shift(position, S)) * (D // H) ** -0.5
        causal = band(n, S, W if sliding else None, device=x.device)
        scores = scores.masked_fill(~(causal if mask is None else causal & mask), -torch.inf)
        weights = F.dropout(scores.softmax(-1), self.config.dropout, self.training).to(context.dtype)
        if few:
            o = torch.einsum("b h n d, h k d -> b h n k", weights @ context[:, None], W_v.unflatten(0, (H, -1)))
        else:
            o = weights.to(v.dtype) @ v
        return o.transpose(1, 2).flatten(2)

    def _before(self, x: Tensor, state: TransformerXLState) -> tuple[Tensor, Tensor | None]:
        """The inputs before x that its first token may see, newest last, and where rows differ which of them are a row's own."""
        c, n = self.config, x.shape[1]
        own = state.position % c.segment_length  # inputs of the open segment
        held = own + (state.position - own).clamp(max=c.window)
        if c.visible == "sliding":
            held = held.clamp(max=c.window - 1)
        most, start = int(held.max()), shared(state.position)
        if start is not None:
            opened = int(own[0])
            from_memory = max(0, most - opened)
            parts = (state.memory[:, c.window - from_memory :], state.opened[:, max(0, opened - most) : opened])
            return torch.cat(parts, dim=1), None
        kept = torch.cat([state.memory, state.opened], dim=1)
        slots = (c.window + own - most)[:, None] + torch.arange(most)
        slots = slots.clamp(min=0).to(x.device)[..., None].expand(-1, -1, c.d_model)
        mask = torch.arange(most + n) >= (most - held)[:, None]
        return kept.gather(1, slots), mask[:, None, None].to(x.device)

    def _append(self, x: Tensor, state: TransformerXLState) -> TransformerXLState:
        L, n, start = self.config.segment_length, x.shape[1], shared(state.position)
        own, x = state.position % L, x.to(state.opened.dtype)
        if start is not None:
            opened = state.opened.slice_scatter(x, 1, start % L, start % L + n)
        else:
            slots = (own[:, None] + torch.arange(n)).to(x.device)[..., None].expand_as(x)
            opened = state.opened.scatter(1, slots, x)
        state = TransformerXLState(state.memory, opened, state.position + n)
        full = own + n == L
        if not full.any():
            return state
        closed = self._close(state)
        return closed if full.all() else choose(full, closed, state)

    def _close(self, state: TransformerXLState) -> TransformerXLState:
        """The segment's inputs join the memory, and the gradient ends here."""
        W, L = self.config.window, self.config.segment_length
        memory = torch.cat([state.memory[:, min(W, L) :], state.opened[:, max(0, L - W) :]], dim=1)
        if self.config.gradient == "stopped":
            memory = memory.detach()
        return TransformerXLState(memory, self.init_state(len(memory)).opened, state.position)

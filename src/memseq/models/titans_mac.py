"""Titans, memory as a context (MAC): attention to what the long memory says of a segment, and to the segment itself.

Source: Titans (Behrouz et al., arXiv:2501.00663), section 4.1. In segments of C tokens, M_{s-1} the memory after the last one:

    h_i = W_h rms(M_{s-1}(q(x_i)))                        what the memory knows of every token of the segment
    y_i = attention of x_i to [P | h_1 ... h_i | x_1 ... x_i]
    M   <- writes y_i,  m_i = M(y_i)                      by token, inside the segment too
    o_i = W_o (rms(y_i) * sigmoid(rms(m_i)))

Read literally, the paper shows token i the whole of h and lets M write a segment before it is read: both look into the future. Here h
and the read are cut at token i. M's own segment is the model's: its anchor is M_{s-1}. A block is x += MAC(norm x); x += FFN(norm x).

State: the memory's, and 16 B C D bytes of keys and values of the open segment; nothing of those between two segments.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.layers.persistent import PersistentHeads
from memseq.layers.rotary import places
from memseq.memories.titans import TitansConfig, TitansState
from memseq.models.titans import Branch, TitansModel
from memseq.ops.precision import unrounded

__all__ = ["MAC", "TitansMACConfig"]


@dataclass(frozen=True, kw_only=True)
class TitansMACConfig(TitansModel):
    """The segment_length of `memory` is C."""

    n_heads: int = 4  # of the attention

    @property
    def branch(self) -> "MAC":
        return MAC(d_model=self.d_model, n_heads=self.n_heads, n_persistent=self.n_persistent, memory=self.memory)

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "TitansMACConfig":
        memory = TitansConfig(d_model=size.d_model, n_heads=size.n_heads, segment_length=size.segment_length)
        return cls(vocab_size=vocab_size, d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads, memory=memory)


class MACState(NamedTuple):
    memory: TitansState
    keys: Float[Tensor, "B H C N K"]  # slot i holds those of h_i and of x_i; zeros where nothing was read yet
    values: Float[Tensor, "B H C N K"]
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class MAC(Branch):
    n_heads: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.d_model, self.n_heads, 0.0)

    def build(self) -> "MACBranch":
        return MACBranch(self)


class MACBranch(Memory[MACState]):
    def __init__(self, config: MAC) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.heads = PersistentHeads(D, config.n_heads, config.n_persistent)
        self.memory = config.memory.build()
        width = config.memory.n_heads * config.memory.key_size
        self.asking = Linear(D, width, bias=False)  # W_Q of the first read
        self.told = Linear(width, D, bias=False)  # W_h
        self.heard_norm = nn.RMSNorm(config.memory.key_size, eps=1e-5)
        self.near_norm, self.far_norm = nn.RMSNorm(D, eps=1e-5), nn.RMSNorm(D, eps=1e-5)
        self.out = Linear(D, D, bias=False)
        for layer in (self.asking, self.told, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def init_state(self, batch_size: int) -> MACState:
        H, K = self.heads.n_heads, self.heads.key_size
        nothing = empty(self.heads.like, batch_size, H, self.config.segment_length, 2, K)
        return MACState(self.memory.init_state(batch_size), nothing, nothing, torch.zeros(batch_size, dtype=torch.int64))

    def forward(self, x: Float[Tensor, "B T D"], state: MACState) -> tuple[Float[Tensor, "B T D"], MACState]:
        near, far, at = [], [], 0
        while at < x.shape[1]:
            n = min(x.shape[1] - at, self.config.segment_length - int(state.position.max()))
            y, state = self._attend(x[:, at : at + n], state)
            m, memory = self.memory(y, state.memory)
            state = state._replace(memory=memory)
            near.append(y)
            far.append(m)
            at += n
        y, m = (z[0] if len(z) == 1 else torch.cat(z, dim=1) for z in (near, far))
        return self.out(self.near_norm(y) * self.far_norm(m).sigmoid()), state

    def recalled(self, x: Float[Tensor, "B n D"], state: TitansState) -> Float[Tensor, "B n D"]:
        """h: what the memory before the segment says."""
        q = F.silu(self.asking(x)).unflatten(-1, (self.config.memory.n_heads, -1)).transpose(1, 2)
        anchor = state.fast.anchor
        with unrounded(x):
            said = self.memory.network(F.normalize(q.to(anchor[0].dtype), dim=-1, eps=1e-6), anchor)
            said = self.heard_norm(said.transpose(1, 2).to(self.heard_norm.weight.dtype))
        return self.told(said.flatten(2).to(x.dtype))

    def _attend(self, x: Tensor, state: MACState) -> tuple[Tensor, MACState]:
        """y of a piece that lies inside the open segment of every row."""
        n, end = x.shape[1], int(state.position.max()) + x.shape[1]
        at = places(state.position, n, x.device)
        q, turned = self.heads.queries(x, at)
        pairs = zip(self.heads.remember(self.recalled(x, state.memory), at), self.heads.remember(x, at), strict=True)
        new = [torch.stack(pair, dim=3) for pair in pairs]
        slots = state.position[:, None] + torch.arange(n)
        there = slots.to(x.device)[:, None, :, None, None].expand_as(new[0])
        keys, values = (kept.scatter(2, there, z) for kept, z in zip((state.keys, state.values), new, strict=True))
        seen = (torch.arange(end) <= slots[..., None])[:, None].to(x.device).repeat_interleave(2, dim=-1)
        o = self.heads.attend(q, turned, keys[:, :, :end].flatten(2, 3), values[:, :, :end].flatten(2, 3), seen)
        return self.heads.write(o), self._closed(state._replace(keys=keys, values=values, position=state.position + n))

    def _closed(self, state: MACState) -> MACState:
        """Rows whose segment is full forget its keys and values."""
        full = state.position == self.config.segment_length
        if not full.any():
            return state
        nothing, rows = empty(self.heads.like, *state.keys.shape), full.to(state.keys.device)[:, None, None, None, None]
        keys, values = (nothing if full.all() else torch.where(rows, nothing, z) for z in (state.keys, state.values))
        return state._replace(keys=keys, values=values, position=state.position.masked_fill(full, 0))

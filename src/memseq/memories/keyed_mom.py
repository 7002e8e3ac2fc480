"""Mixture of memories whose router reads keys: a pair is written where its key leads, and asked for where the query leads.

Source: MoM (Du et al., arXiv:2502.13685), whose router reads the token. There a pair is written where its value stands and is asked for
where its key stands, two tokens with nothing in common, and are routed apart (`docs/systems/keyed_mom.md` measures it). Here

    q, k, v = silu(conv(W x)), as the rule has them (`layers/update_rules.py`); its gates and z are of x
    p^w     = softmax(W_r k / |k|)       the n likeliest of E memories are written
    p^r     = softmax(W_r q / |q|)       the n likeliest are read, with weights g that add up to one
    M^m_t   = rule(M^m_(t-1), k, v, gates)  where m is written,   M^m_t = M^m_(t-1)  elsewhere
    y_t     = W_o (w * rms(sum_m g_m q_t M^m_t) * silu(z))                      rms over a head

One W_r for both, over all heads' keys side by side: a query that resembles a key goes where it went. A choice has no gradient, and with
one memory read its weight, which is 1, has none either. So the gradient goes straight through: it is that of writing with p^w into all
memories and reading them all with p^r. Every memory therefore reads every token in `forward`; `step` without gradients touches the
memories that are written and read, and no others.

A router cannot agree about keys and queries that have not been learned. `memory.n_active`, at first the config's, may be set while
training: all E at first, when all memories hold the same and the layer is that of its rule, then n. `balance` evens what is written.

State: M, 4 B E H K V bytes in float32; the last inputs of the convolution; how many tokens were written to each memory; `auxiliary`, to
which a training module adds `balance` times `ops.routing.balance`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.conv_heads import ConvHeads, check_delta_heads, delta_sizes
from memseq.layers.head_norm import NormThenGate, unit
from memseq.layers.linear import Linear
from memseq.layers.update_rules import AdditiveRule, ChannelRule, DeltaRule, GatedDeltaRule, UpdateRule
from memseq.ops.routing import balance, choose_memories, one_hot

__all__ = ["KeyedMoMConfig", "KeyedMoMMemory", "KeyedMoMState"]


class KeyedMoMState(NamedTuple):
    M: Float[Tensor, "B E H K V"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last
    load: Float[Tensor, "B E"]  # tokens that were written to each memory
    auxiliary: Float[Tensor, "B"]  # what the router has added to the loss while it trained


@dataclass(frozen=True, kw_only=True)
class KeyedMoMConfig:
    d_model: int
    n_heads: int = 4
    key_size: int | None = None  # None: d_model / n_heads
    value_size: int | None = None  # None: d_model / n_heads
    n_memories: int = 4  # E
    n_active: int = 1  # n: memories that a token writes, and that it reads
    rule: AdditiveRule | ChannelRule | DeltaRule | GatedDeltaRule = field(default_factory=GatedDeltaRule)
    sharpness: float = 8.0  # standard deviation of the router's logits before training
    balance: float = 0.01  # of the auxiliary loss that evens what is written, per token
    conv_width: int = 4
    norm_eps: float = 1e-6
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_delta_heads(self)
        if not 1 <= self.n_active <= self.n_memories:
            raise ConfigError(f"n_active={self.n_active} must lie in 1 to n_memories={self.n_memories}")
        if self.sharpness <= 0:
            raise ConfigError(f"sharpness must be above zero, got {self.sharpness}; 8 tells memories apart from the start")
        if self.balance < 0:
            raise ConfigError(f"balance must not be negative, got {self.balance}; 0 leaves the load as it is")

    def build(self) -> "KeyedMoMMemory":
        return KeyedMoMMemory(self)


class Token(NamedTuple):
    """What a piece of stream asks for: to be written, to be read, and where."""

    q: Float[Tensor, "B T H K"]
    k: Float[Tensor, "B T H K"]
    v: Float[Tensor, "B T H V"]
    gates: Float[Tensor, "B T H G"]
    z: Float[Tensor, "B T H V"]
    write: Float[Tensor, "B T E"]  # p^w
    read: Float[Tensor, "B T E"]  # p^r
    tail: Float[Tensor, "B W C"]


class KeyedMoMMemory(Memory[KeyedMoMState]):
    def __init__(self, config: KeyedMoMConfig) -> None:
        super().__init__()
        self.config = c = config
        H, (self.key_size, self.value_size) = c.n_heads, delta_sizes(c)
        self.n_active = c.n_active  # may be set while training
        self.heads = ConvHeads(c, extra=H * (self.value_size + c.rule.size(self.key_size)))  # z, gates
        self.router = nn.Linear(H * self.key_size, c.n_memories, bias=False)
        self.rule: UpdateRule = c.rule.build(H)
        self.norm = NormThenGate(self.value_size, c.norm_eps)
        self.out = Linear(H * self.value_size, c.d_model, bias=False)
        nn.init.normal_(self.router.weight, std=c.sharpness)
        nn.init.normal_(self.out.weight, std=self.out.in_features**-0.5)

    def init_state(self, batch_size: int) -> KeyedMoMState:
        E, matrix = self.config.n_memories, self.heads.init_matrix(batch_size)
        M = matrix.new_zeros(batch_size, E, *matrix.shape[1:])
        return KeyedMoMState(M, self.heads.conv.init_tail(batch_size), M.new_zeros(batch_size, E), M.new_zeros(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: KeyedMoMState) -> tuple[Float[Tensor, "B T D"], KeyedMoMState]:
        c, (B, E) = self.config, state.M.shape[:2]
        t = self._token(x, state.tail)
        with torch.autocast(x.device.type, enabled=False):
            written = one_hot(t.write.topk(self.n_active, dim=-1).indices, E)
            added, load = balance(t.write, written, state.load, self.n_active)
            chosen, weight = choose_memories(t.read, self.n_active)
            keep = _straight(written.to(t.write.dtype), t.write)
            g = _straight(torch.zeros_like(t.read).scatter(-1, chosen, weight.detach()), t.read)
            q, k, v, gates = (z.transpose(1, 2)[:, None].expand(-1, E, *(-1,) * 3).flatten(0, 1) for z in (t.q, t.k, t.v, t.gates))
            k, gates = self.rule.silent(k, self.rule.gates(gates), keep.mT.flatten(0, 1)[:, None, :, None])
            y, M = self.rule.read(q, k, v.to(state.M.dtype), gates, state.M.flatten(0, 1), c.chunk_size)
            o = torch.einsum("b e h t v, b t e -> b t h v", y.unflatten(0, (B, E)), g)
        auxiliary = state.auxiliary + c.balance * added if self.training else state.auxiliary
        return self._out(o, t.z), KeyedMoMState(M.unflatten(0, (B, E)), t.tail, load, auxiliary)

    def step(self, x: Float[Tensor, "B D"], state: KeyedMoMState) -> tuple[Float[Tensor, "B D"], KeyedMoMState]:
        if torch.is_grad_enabled() or self.training:
            return super().step(x, state)
        B, E = state.M.shape[:2]
        t = self._token(x[:, None], state.tail)
        with torch.autocast(x.device.type, enabled=False):
            written = t.write.topk(self.n_active, dim=-1).indices
            chosen, weight = choose_memories(t.read, self.n_active)
            at = E * torch.arange(B, device=x.device)[:, None]
            own, M = (at + written[:, 0]).flatten(), state.M.flatten(0, 1)
            q, k, v, gates = (torch.repeat_interleave(u.transpose(1, 2), self.n_active, 0) for u in (t.q, t.k, t.v, t.gates))
            _, after = self.rule.read(q, k, v.to(M.dtype), self.rule.gates(gates), M.index_select(0, own), self.config.chunk_size)
            M = M.index_copy(0, own, after)
            found = M.index_select(0, (at + chosen[:, 0]).flatten()).unflatten(0, (B, -1))
            o = torch.einsum("b h k, b n h k v, b n -> b h v", t.q[:, 0], found, weight[:, 0])[:, None]
            load = state.load + one_hot(written, E)[:, 0].to(state.load.dtype)
        return self._out(o, t.z)[:, 0], KeyedMoMState(M.unflatten(0, (B, E)), t.tail, load, state.auxiliary)

    def routes(self, x: Float[Tensor, "B T D"], state: KeyedMoMState) -> tuple[Bool[Tensor, "B T E"], Bool[Tensor, "B T E"]]:
        """Which memories every token of x is written to, and which it reads."""
        t = self._token(x, state.tail)
        written, read = (one_hot(p.topk(self.n_active, dim=-1).indices, self.config.n_memories) for p in (t.write, t.read))
        return written, read

    def _token(self, x: Tensor, tail: Tensor) -> Token:
        H = self.config.n_heads
        q, k, v, rest, tail = self.heads(x, tail)
        z, gates = rest.split([H * self.value_size, rest.shape[-1] - H * self.value_size], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            q, k = self.rule.queries(q), self.rule.keys(k)
            W = self.router.weight.to(k.dtype)
            write, read = (F.linear(unit(u.flatten(2)), W).softmax(-1) for u in (k, q))
        return Token(q, k, v, gates.unflatten(-1, (H, gates.shape[-1] // H)), z.unflatten(-1, (H, -1)), write, read, tail)

    def _out(self, o: Tensor, z: Tensor) -> Tensor:
        return self.out(self.norm(o, z).flatten(2))


def _straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The numbers of `hard`, to the last bit, and the gradient of `soft`."""
    return hard + (soft - soft.detach())

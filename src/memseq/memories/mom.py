"""Mixture of memories: several matrices of which a token reads and writes a few, so that what is apart does not interfere.

Source: *MoM: Linear Sequence Modeling with Mixture-of-Memories* (Du et al., arXiv:2502.13685); any rule of the linear family writes.

    p = softmax(W_r x), the k largest of E chosen, g_m = p_m / sum of the chosen p
    q = silu(conv(W_q x));   k^m, v^m = silu(conv(W^m x)) and the rule's gates from x          of every memory m, or one for all
    M^m_t = rule(M^m_(t-1), k^m, v^m, gates^m)  for the chosen,   M^m_t = M^m_(t-1)  for the others: they do not fade either
    o_t   = sum_m g_m q_t M^m_t  (+ q_t M^shared_t, written by every token)
    y_t   = W_o (w * rms(o_t) * silu(W_z x))                                                   rms over a head

Rules: `layers/update_rules.py`. With one memory, k = 1 and nothing shared it is the rule's own layer. All memories share the weights of the
convolution, the rates of decay, the norm and the queries. The convolution runs over the stream's own order, before the routing: in the
published code it runs over the tokens as they are sorted, across the borders of memories and streams, and sees the future.

Two forms of one function: "sorted" gives every memory its tokens side by side (`ops/routing.py`), k T of them where the load is even;
"dense" lets every memory read all T, with keys and gates of zero where a token is not its own. A single token touches its k matrices
alone. The routing is a function of x in float32; a second pass of memory replay chooses as the first did.

State: M, 4 B E H K V bytes in float32, and the shared one; the last inputs x of the convolution; how many tokens chose each memory
(float32: exact up to 16.7 million); and `auxiliary`, to which a training module adds `balance` times `ops.routing.balance`.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.conv_heads import check_delta_heads
from memseq.layers.head_norm import NormThenGate
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.layers.update_rules import AdditiveRule, ChannelRule, DeltaRule, GatedDeltaRule, UpdateRule
from memseq.ops.linear import linear
from memseq.ops.routing import balance, choose_memories, gather, one_hot
from memseq.ops.short_conv import short_conv_silu

__all__ = ["MoMConfig", "MoMMemory", "MoMState"]


class MoMState(NamedTuple):
    M: Float[Tensor, "B E H K V"]
    shared: Float[Tensor, "B H K V"] | tuple[()]
    tail: Float[Tensor, "B W D"]  # the last inputs, newest last
    load: Float[Tensor, "B E"]  # tokens that chose each memory
    auxiliary: Float[Tensor, "B"]  # what the router has added to the loss while it trained


@dataclass(frozen=True, kw_only=True)
class MoMConfig:
    d_model: int
    n_heads: int = 4
    key_size: int | None = None  # None: d_model / n_heads
    value_size: int | None = None  # None: d_model / n_heads
    n_memories: int = 4  # E
    n_active: int = 2  # k: memories that a token reads and writes
    shared: bool = True  # one more memory, of every token
    rule: AdditiveRule | ChannelRule | DeltaRule | GatedDeltaRule = field(default_factory=GatedDeltaRule)
    projections: Literal["each", "one"] = "each"  # "one": keys, values and gates are the same for every memory
    balance: float = 0.01  # of the auxiliary loss that evens the load, per token
    conv_width: int = 4
    norm_eps: float = 1e-6
    form: Literal["sorted", "dense"] = "sorted"  # speed and rounding only
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_delta_heads(self)
        if not 1 <= self.n_active <= self.n_memories:
            raise ConfigError(f"n_active={self.n_active} must lie in 1 to n_memories={self.n_memories}")
        if self.balance < 0:
            raise ConfigError(f"balance must not be negative, got {self.balance}; 0 leaves the load as it is")
        for name, choices in (("projections", ("each", "one")), ("form", ("sorted", "dense"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be {choices[0]!r} or {choices[1]!r}, got {getattr(self, name)!r}")

    @property
    def n_key_heads(self) -> None:
        """Every head has its own keys."""

    def build(self) -> "MoMMemory":
        return MoMMemory(self)


class MoMMemory(Memory[MoMState]):
    def __init__(self, config: MoMConfig) -> None:
        super().__init__()
        self.config = c = config
        H, D = c.n_heads, c.d_model
        self.key_size, self.value_size = c.key_size or D // H, c.value_size or D // H
        self.keys, self.values = H * self.key_size, H * self.value_size
        self.gates = H * c.rule.size(self.key_size)
        self.sets = 1 if c.projections == "one" else c.n_memories + c.shared  # the shared memory's is the last
        self.router = nn.Linear(D, c.n_memories, bias=False)
        self.query = Linear(D, self.keys, bias=False)
        self.written = nn.Parameter(torch.empty(self.sets, self.keys + self.values, D))  # W^m of keys and values
        self.decided = nn.Parameter(torch.empty(self.sets, self.gates, D))  # W^m of the rule's gates
        self.conv = ShortConv(2 * self.keys + self.values, c.conv_width, silu=True)
        self.rule: UpdateRule = c.rule.build(H)
        self.gate = Linear(D, self.values, bias=False)
        self.norm = NormThenGate(self.value_size, c.norm_eps)
        self.out = Linear(self.values, D, bias=False)
        for weight in (self.router.weight, self.query.weight, self.gate.weight, self.written, self.decided):
            nn.init.normal_(weight, std=D**-0.5)
        nn.init.normal_(self.out.weight, std=self.values**-0.5)

    def init_state(self, batch_size: int) -> MoMState:
        c, w = self.config, self.out.weight
        wide = torch.promote_types(w.dtype, torch.float32)
        size = (c.n_heads, self.key_size, self.value_size)
        return MoMState(
            w.new_zeros((batch_size, c.n_memories, *size), dtype=wide),
            w.new_zeros((batch_size, *size), dtype=wide) if c.shared else (),
            empty(w, batch_size, c.conv_width - 1, c.d_model),
            w.new_zeros((batch_size, c.n_memories), dtype=wide),
            w.new_zeros(batch_size, dtype=wide),
        )

    def forward(self, x: Float[Tensor, "B T D"], state: MoMState) -> tuple[Float[Tensor, "B T D"], MoMState]:
        c = self.config
        with torch.autocast(x.device.type, enabled=False):
            p = F.linear(x.to(state.M.dtype), self.router.weight.to(state.M.dtype)).softmax(-1)
            chosen, weight = choose_memories(p, c.n_active)
            routed = one_hot(chosen, c.n_memories)
            added, load = balance(p, routed, state.load, c.n_active)
        if x.shape[1] == 1:
            o, M, shared = self._read_one(x, chosen[:, 0], weight[:, 0], state)
        else:
            o, M, shared = self._read_many(x, chosen, weight, routed, state)
        y = self.norm(o.unflatten(-1, (c.n_heads, -1)), self.gate(x).unflatten(-1, (c.n_heads, -1)))
        auxiliary = state.auxiliary + c.balance * added if self.training else state.auxiliary
        return self.out(y.flatten(2)), MoMState(M, shared, self.conv.shift(x, state.tail), load, auxiliary)

    def _mixed(self, x: Tensor, tail: Tensor, weight: Tensor, taps: Tensor) -> Tensor:
        """silu(conv(W x)); what the convolution sees before x is projected with it, so that a state holds inputs and no projections."""
        return short_conv_silu(linear(x, weight), linear(tail.to(x.dtype), weight), taps)

    def _queries(self, x: Tensor, tail: Tensor, taps: Tensor) -> Tensor:
        """Queries as the rule has them, the same for every memory: [B, T, H K]."""
        q = self._mixed(x, tail, self.query.weight, taps)
        with torch.autocast(x.device.type, enabled=False):
            return self.rule.queries(q.unflatten(-1, (self.config.n_heads, -1))).flatten(2)

    def _read_many(
        self, x: Tensor, chosen: Tensor, weight: Tensor, routed: Tensor, state: MoMState
    ) -> tuple[Tensor, Tensor, Tensor | tuple[()]]:
        c, E = self.config, self.config.n_memories
        query_taps, written_taps = self.conv.weight.split([self.keys, self.keys + self.values])
        q = self._queries(x, state.tail, query_taps)
        own = (self.written, self.decided) if self.sets == 1 else (self.written[:E], self.decided[:E])
        sets = len(own[0])
        written = self._mixed(x, state.tail, own[0].flatten(0, 1), written_taps.repeat(sets, 1)).unflatten(-1, (sets, -1))
        gates = linear(x, own[1].flatten(0, 1)).unflatten(-1, (sets, self.gates))
        read = self._read_sorted if c.form == "sorted" else self._read_dense
        o, M = read(q, written, gates, chosen, weight, routed, state.M)
        if not c.shared:
            return o, M, ()
        if self.sets > 1:
            written = self._mixed(x, state.tail, self.written[-1], written_taps)[:, :, None]
            gates = linear(x, self.decided[-1])[:, :, None]
        everywhere, shared = self._op(q, written[:, :, 0], gates[:, :, 0], None, cast(Tensor, state.shared))
        return o + everywhere, M, shared

    def _op(self, q: Tensor, written: Tensor, gates: Tensor, keep: Tensor | None, M: Tensor) -> tuple[Tensor, Tensor]:
        """Read and write N matrices [N, H, K, V], each with tokens of its own [N, L, .]; those that `keep` [N, L] leaves out do neither."""
        H, parts = self.config.n_heads, (q, *written.split([self.keys, self.values], dim=-1), gates)
        q, k, v, gates = (z.unflatten(-1, (H, z.shape[-1] // H)).transpose(1, 2) for z in parts)
        with torch.autocast(q.device.type, enabled=False):
            k, gates = self.rule.keys(k), self.rule.gates(gates)
            if keep is not None:
                k, gates = self.rule.silent(k, gates, keep[:, None, :, None].to(k.dtype))
            y, M = self.rule.read(q, k, v.to(M.dtype), gates, M, self.config.chunk_size)
        return y.transpose(1, 2).flatten(2), M

    def _read_sorted(
        self, q: Tensor, written: Tensor, gates: Tensor, chosen: Tensor, weight: Tensor, routed: Tensor, M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every memory reads its own tokens, side by side."""
        (B, E), sets = M.shape[:2], written.shape[2]
        grid = gather(chosen, routed, multiple=self.config.chunk_size)
        of_token = grid.source.flatten(0, 1)
        of_set = of_token if sets == 1 else of_token * sets + torch.arange(E, device=q.device).repeat(B)[:, None]

        def rows(z: Tensor, where: Tensor) -> Tensor:
            return z.flatten(0, -2).index_select(0, where.flatten()).view(*where.shape, z.shape[-1])

        y, after = self._op(rows(q, of_token), rows(written, of_set), rows(gates, of_set), grid.filled.flatten(0, 1), M.flatten(0, 1))
        return torch.einsum("b t k c, b t k -> b t c", rows(y, grid.place), weight), after.unflatten(0, (B, E))

    def _read_dense(
        self, q: Tensor, written: Tensor, gates: Tensor, chosen: Tensor, weight: Tensor, routed: Tensor, M: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Every memory reads all tokens, of which those that are not its own change nothing."""
        B, E = M.shape[:2]
        parts = (z.expand(-1, -1, E, -1).transpose(1, 2).flatten(0, 1) for z in (q[:, :, None], written, gates))
        y, after = self._op(*parts, routed.mT.flatten(0, 1), M.flatten(0, 1))
        g = torch.zeros_like(routed, dtype=weight.dtype).scatter(-1, chosen, weight)
        return torch.einsum("b e t c, b t e -> b t c", y.unflatten(0, (B, E)), g), after.unflatten(0, (B, E))

    def _read_one(self, x: Tensor, chosen: Tensor, weight: Tensor, state: MoMState) -> tuple[Tensor, Tensor, Tensor | tuple[()]]:
        """One token: the projections and the matrices of what it chose, and no others."""
        c, (B, k) = self.config, chosen.shape
        query_taps, written_taps = self.conv.weight.split([self.keys, self.keys + self.values])
        if self.sets == 1:
            used, index = [0], torch.zeros_like(chosen)
        else:
            distinct, index = chosen.unique(return_inverse=True)
            used = distinct.tolist()
        if c.shared:
            index = torch.cat([index, index.new_full((B, 1), len(used) if self.sets > 1 else 0)], dim=1)
            used = [*used, self.sets - 1] if self.sets > 1 else used
        written = torch.stack([self._mixed(x, state.tail, self.written[m], written_taps) for m in used], dim=1)
        decided = torch.stack([linear(x, self.decided[m]) for m in used], dim=1)
        at = torch.arange(B, device=x.device)[:, None]
        rows = (at * c.n_memories + chosen).flatten()
        M = state.M.flatten(0, 1)
        own = M.index_select(0, rows).unflatten(0, (B, k))
        if c.shared:
            own = torch.cat([own, cast(Tensor, state.shared)[:, None]], dim=1)
        q = self._queries(x, state.tail, query_taps)[:, None].expand(-1, own.shape[1], -1, -1)
        y, after = self._op(*(z.flatten(0, 1) for z in (q, written[at, index], decided[at, index])), None, own.flatten(0, 1))
        y, after = y.unflatten(0, (B, -1)), after.unflatten(0, (B, -1))
        o = torch.einsum("b k t c, b k -> b t c", y[:, :k], weight)
        M = M.index_copy(0, rows, after[:, :k].flatten(0, 1)).unflatten(0, (B, -1))
        return (o + y[:, k], M, after[:, k].clone()) if c.shared else (o, M, ())

"""Mamba-2: a selective state space whose transition is one scalar a head and token.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).

    z, u, B, C, d = W_in x                         u: H heads of P; B, C: G groups of N, each for H / G heads
    u, B, C  = silu(conv(u, B, C))                 causal, width 4
    d_t      = softplus(d_t + dt_bias)             the step, clamped to [min_step, max_step]
    h_t      = exp(-d_t e^{A_log}) h_{t-1} + B_t^T (d_t u_t)         [N, P] a head
    y_t      = C_t h_t + D u_t
    out      = W_out (w * rms(y * silu(z)))        rms over each of the G groups of channels

With C, B, d u as queries, keys and values it is the decay op of `ops/decay.py`; C B^T is formed once a group.
State: h in float32 and the convolution's last inputs, 4 B (H N P + (width - 1) (H P + 2 G N)) bytes in float32, at any length.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.decay_gate import DecayGate
from memseq.layers.head_norm import GateThenNorm
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.layers.sizes import check_at_least_one
from memseq.ops.linear_attention import decay_chunkwise

__all__ = ["Mamba2Config", "Mamba2Memory", "Mamba2State"]


class Mamba2State(NamedTuple):
    h: Float[Tensor, "B H N P"]
    tail: Float[Tensor, "B W C"]  # the last inputs of the convolution, newest last


@dataclass(frozen=True, kw_only=True)
class Mamba2Config:
    d_model: int
    expand: int = 2  # inner channels, in d_model
    head_size: int = 64  # P; must divide the inner channels
    state_size: int = 128  # N
    n_groups: int = 1  # of B and C
    conv_width: int = 4
    conv_bias: bool = True
    bias: bool = False  # of the two projections
    min_step: float = 0.0
    max_step: float | None = None
    retain: float = 1.0  # multiplies the share of the past that is kept: below 1 forgets more (`memories/stuffed_mamba.py`)
    insert: float = 1.0  # multiplies B: below 1 remembers less
    norm_eps: float = 1e-5
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "expand", "head_size", "state_size", "n_groups", "conv_width", "chunk_size")
        if self.inner % self.head_size:
            raise ConfigError(
                f"expand * d_model = {self.inner} channels cannot be split into heads of head_size={self.head_size};"
                f" use a divisor, such as head_size={math.gcd(self.inner, self.head_size)}"
            )
        if self.n_heads % self.n_groups:
            raise ConfigError(f"{self.n_heads} heads cannot share n_groups={self.n_groups} equally; use a divisor of {self.n_heads}")
        if not 0 <= self.min_step < (math.inf if self.max_step is None else self.max_step):
            raise ConfigError(f"steps lie in 0 <= min_step < max_step, got min_step={self.min_step} and max_step={self.max_step}")

        if not (0 < self.retain <= 1 and self.insert > 0):
            raise ConfigError(f"retain lies in (0, 1] and insert above 0, got retain={self.retain} and insert={self.insert}")

    @classmethod
    def of_size(cls, size: Any) -> "Mamba2Config":
        """The memory of a `presets.Size`, with heads of 64 where the width allows."""
        return cls(d_model=size.d_model, head_size=math.gcd(64, 2 * size.d_model))

    @property
    def inner(self) -> int:
        return self.expand * self.d_model

    @property
    def n_heads(self) -> int:
        return self.inner // self.head_size

    @property
    def conv_channels(self) -> int:
        return self.inner + 2 * self.n_groups * self.state_size

    def build(self) -> "Mamba2Memory":
        return Mamba2Memory(self)


class Mamba2Memory(Memory[Mamba2State]):
    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = c = config
        self.inputs = Linear(c.d_model, c.inner + c.conv_channels + c.n_heads, bias=c.bias)  # z, [u, B, C], d
        self.conv = ShortConv(c.conv_channels, c.conv_width, bias=c.conv_bias, silu=True)
        self.gate = DecayGate(c.n_heads, min_step=c.min_step, max_step=c.max_step)
        self.skip = nn.Parameter(torch.ones(c.n_heads))
        self.skip.no_decay = True  # ty: ignore[missing-attribute]
        self.norm = GateThenNorm(c.inner, c.n_groups, c.norm_eps)
        self.out = Linear(c.inner, c.d_model, bias=c.bias)
        for layer in (self.inputs, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def init_state(self, batch_size: int) -> Mamba2State:
        c, w = self.config, self.skip
        h = w.new_zeros(batch_size, c.n_heads, c.state_size, c.head_size, dtype=torch.promote_types(w.dtype, torch.float32))
        return Mamba2State(h, self.conv.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: Mamba2State) -> tuple[Float[Tensor, "B T D"], Mamba2State]:
        c = self.config
        z, mixed, steps = self.inputs(x).split([c.inner, c.conv_channels, c.n_heads], dim=-1)
        mixed, tail = self.conv(mixed, state.tail)
        u, B, C = mixed.split([c.inner, c.n_groups * c.state_size, c.n_groups * c.state_size], dim=-1)
        u = u.unflatten(-1, (c.n_heads, c.head_size))
        B, C = (t.unflatten(-1, (c.n_groups, c.state_size)).transpose(1, 2) for t in (B, C))
        with torch.autocast(x.device.type, enabled=False):
            step, log_a = self.gate(steps)
            if c.retain != 1 or c.insert != 1:
                B, log_a = B * c.insert, log_a + math.log(c.retain)
            written = (u.to(state.h.dtype) * step[..., None]).transpose(1, 2)
            y, h = decay_chunkwise(C, B, written, log_a.transpose(1, 2), state.h, chunk_size=c.chunk_size)
            y = torch.addcmul(y.transpose(1, 2), u.to(y.dtype), self.skip.to(y.dtype)[:, None])
        return self.out(self.norm(y.flatten(2), z)), Mamba2State(h, tail)

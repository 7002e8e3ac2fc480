"""RWKV-7: a matrix a head that fades per channel, removes what stands under one key and writes under another.

Source: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution" (arXiv:2503.14456), the time mixing of one layer.

    x^r, x^w, x^k, x^v, x^a, x^g = x_t + (x_{t-1} - x_t) mu_*                a mixture of two tokens for each use
    r, k, v = W x^r, W x^k, W x^v
    w  = exp(-e^{-1/2} sigmoid(b_w + W_2 tanh(W_1 x^w)))                    decay, from 0.545 to 1
    a  = sigmoid(b_a + A_2 A_1 x^a)                                         in-context learning rate, per channel
    g  = G_2 sigmoid(G_1 x^g)                                               output gate
    kk = unit(k xi),   k~ = k (1 + (a - 1) alpha)                           removal key (per head), replacement key
    S_t = Diag(w) S_{t-1} - (a kk)^T (kk S_{t-1}) + k~^T v
    out = W_o (g (norm(r S_t) + (r . rho k~) v))                            norm: of each head, with gain and bias

The values of the first layer, which the paper's model mixes into those of all others, cross layers, which a memory in a stack does not:
alone it is a first layer; `models/rwkv7.py` has the whole model.

State: S in float32 and the last x, 4 B D (K + 1) bytes in float32, whatever the length of the stream.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear
from memseq.layers.sizes import check_at_least_one
from memseq.layers.token_shift import LowRank, shift
from memseq.ops.channel_decay import channel_chunkwise

__all__ = ["RWKV7Config", "RWKV7Memory", "RWKV7State", "rank_of"]

FASTEST = math.exp(-0.5)  # -log of the fastest decay


class RWKV7State(NamedTuple):
    S: Float[Tensor, "B H K V"]
    last: Float[Tensor, "B D"]  # the last input


@dataclass(frozen=True, kw_only=True)
class RWKV7Config:
    d_model: int
    n_heads: int = 4  # the paper has heads of 64 channels
    decay_rank: int | None = None  # None: 2.5 sqrt(d_model) to the nearest multiple of 32, at least 32
    rate_rank: int | None = None  # of a; None: the same
    gate_rank: int | None = None  # None: 5 sqrt(d_model), likewise
    norm_eps: float | None = None  # None: 1e-5 a channel of a head, 64e-5 for heads of 64
    chunk_size: int = 32  # speed and rounding only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "n_heads", "decay_rank", "rate_rank", "gate_rank", "chunk_size")
        check_heads(self.d_model, self.n_heads, 0.0)

    def build(self) -> "RWKV7Memory":
        return RWKV7Memory(self)


def rank_of(given: int | None, d_model: int, factor: float) -> int:
    """What is given, or the paper's: factor sqrt(d_model) to the nearest multiple of 32, at least 32."""
    return given or max(32, round(factor * d_model**0.5 / 32) * 32)


class RWKV7Memory(Memory[RWKV7State]):
    def __init__(self, config: RWKV7Config) -> None:
        super().__init__()
        self.config = c = config
        D, H = c.d_model, c.n_heads
        self.norm_eps = c.norm_eps if c.norm_eps is not None else 1e-5 * (D // H)
        place = torch.arange(D) / D
        # r, w, k, v, a, g: later channels look less far back
        self.mixing = nn.Parameter(torch.stack([1 - place**power for power in (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)]))
        self.receptance, self.key, self.value, self.out = (Linear(D, D, bias=False) for _ in range(4))
        self.decay = LowRank(D, D, rank_of(c.decay_rank, D, 2.5), squash=nn.Tanh())
        self.rate = LowRank(D, D, rank_of(c.rate_rank, D, 2.5))
        self.gate = LowRank(D, D, rank_of(c.gate_rank, D, 5.0), squash=nn.Sigmoid(), bias=False)
        self.removal = nn.Parameter(torch.full((D,), 0.71))  # xi
        self.replacement = nn.Parameter(torch.full((D,), 1.02))  # alpha
        self.bonus = nn.Parameter(torch.full((H, D // H), -0.04))  # rho
        self.norm = nn.GroupNorm(H, D, eps=self.norm_eps)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Keys small, values and receptances as they are, half-lives from one token to hundreds across the channels."""
        D, K = self.config.d_model, self.config.d_model // self.config.n_heads
        for layer, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(layer.weight, gain=gain)
        nn.init.normal_(self.out.weight, std=D**-0.5)
        nn.init.orthogonal_(self.gate.down.weight)  # a gate of zero would let nothing out, and W_1 = 0 opens it by chance alone
        nn.init.normal_(self.gate.up.weight, std=2 * self.gate.down.out_features**-0.5)
        n = torch.arange(D)
        within = (n % K - (K - 1) / 2) / max((K - 1) / 2, 0.5)
        self.decay.up.bias.copy_(-6 + 6 * (n / max(D - 1, 1)) ** 1.8 + 0.5 + 2.5 * within * within.abs())
        self.rate.up.bias.copy_(-0.19 + 0.3 * within * within.abs() + 0.4 * (n / max(D - 1, 1) - 0.5))

    def init_state(self, batch_size: int) -> RWKV7State:
        c, w = self.config, self.out.weight
        K = c.d_model // c.n_heads
        S = w.new_zeros(batch_size, c.n_heads, K, K, dtype=torch.promote_types(w.dtype, torch.float32))
        return RWKV7State(S, empty(w, batch_size, c.d_model))

    def forward(self, x: Float[Tensor, "B T D"], state: RWKV7State) -> tuple[Float[Tensor, "B T D"], RWKV7State]:
        return self.mix(x, state)

    def mix(
        self, x: Float[Tensor, "B T D"], state: RWKV7State, values: Callable[[Tensor, Tensor], Tensor] = lambda v, x_v: v
    ) -> tuple[Float[Tensor, "B T D"], RWKV7State]:
        """The memory whose values are `values(v, x^v)`, of what it would have alone and what it read them from."""
        c, dtype = self.config, state.S.dtype
        before, last = shift(x, state.last)
        x_r, x_w, x_k, x_v, x_a, x_g = (torch.addcmul(x, before, mu) for mu in self.mixing.to(x.dtype).unbind(0))
        r, k, v, g = self.receptance(x_r), self.key(x_k), values(self.value(x_v), x_v), self.gate(x_g)
        decay, rate = self.decay(x_w), self.rate(x_a)
        with torch.autocast(x.device.type, enabled=False):
            k, a = k.to(dtype), rate.to(dtype).sigmoid()
            kk, k = k * self.removal.to(dtype), torch.addcmul(k, k * (a - 1), self.replacement.to(dtype))
            r, log_w, k, v, kk, a = (
                t.to(dtype).unflatten(-1, (c.n_heads, -1)).transpose(1, 2) for t in (r, -FASTEST * decay.to(dtype).sigmoid(), k, v, kk, a)
            )
            kk = F.normalize(kk, dim=-1)
            y, S = channel_chunkwise(r, k, v, -kk, kk * a, log_w, state.S, chunk_size=c.chunk_size)
            y = F.group_norm(
                y.transpose(1, 2).flatten(2).flatten(0, 1), c.n_heads, self.norm.weight.to(dtype), self.norm.bias.to(dtype), self.norm_eps
            )
            own = (r * k * self.bonus.to(dtype)[:, None]).sum(-1, keepdim=True) * v
            y = (y.view(x.shape) + own.transpose(1, 2).flatten(2)).to(g.dtype)
        return self.out(g * y), RWKV7State(S, last)

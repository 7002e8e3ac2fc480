"""RWKV-6: a matrix a head whose key channels fade at rates that two tokens decide, read before it is written.

Source: Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (arXiv:2404.05892), Finch's time mixing.

    before          = x_{t-1} - x_t
    z               = tanh(W (x_t + before mu_x)), one part z_* for each use
    x^r, x^w, x^k, x^v, x^g = x_t + before (mu_* + V_* z_*)          how the two tokens are mixed depends on both
    r, k, v, g      = W x^r, W x^k, W x^v, silu(W x^g)
    w               = exp(-exp(b_w + W_2 tanh(W_1 x^w)))              per key channel
    y_t             = r (S_{t-1} + Diag(u) k^T v)                     the token itself counts with the bonus u
    S_t             = Diag(w) S_{t-1} + k^T v
    out             = W_o (norm(y_t) g)                               norm: of each head, with gain and bias

State: S in float32 and the last x, 4 B D (K + 1) bytes in float32, whatever the length of the stream.
"""

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
from memseq.ops.channel_decay import rwkv6_chunkwise

__all__ = ["RWKV6Config", "RWKV6Memory", "RWKV6State"]

USES = 5  # r, w, k, v, g


class RWKV6State(NamedTuple):
    S: Float[Tensor, "B H K V"]
    last: Float[Tensor, "B D"]  # the last input


@dataclass(frozen=True, kw_only=True)
class RWKV6Config:
    d_model: int
    n_heads: int = 4  # the paper has heads of 64 channels
    mix_rank: int = 32
    decay_rank: int = 64
    norm_eps: float = 64e-5
    chunk_size: int = 64  # speed and rounding only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "n_heads", "mix_rank", "decay_rank", "chunk_size")
        check_heads(self.d_model, self.n_heads, 0.0)

    def build(self) -> "RWKV6Memory":
        return RWKV6Memory(self)


class RWKV6Memory(Memory[RWKV6State]):
    def __init__(self, config: RWKV6Config) -> None:
        super().__init__()
        self.config = c = config
        D, H, place = c.d_model, c.n_heads, torch.arange(c.d_model) / c.d_model
        # later channels look less far back
        self.mix_first = nn.Parameter(1 - place)  # mu_x
        self.mixing = nn.Parameter(torch.stack([1 - place**power for power in (0.5, 1.0, 1.0, 1.0, 0.5)]))  # mu_*
        self.mix_down = Linear(D, USES * c.mix_rank, bias=False)  # W
        self.mix_up = nn.Parameter(torch.empty(USES, c.mix_rank, D).uniform_(-0.01, 0.01))  # V_*
        self.receptance, self.key, self.value, self.gate, self.out = (Linear(D, D, bias=False) for _ in range(5))
        self.decay = LowRank(D, D, c.decay_rank, squash=nn.Tanh())
        self.bonus = nn.Parameter((1 - torch.arange(D) / max(D - 1, 1)).view(H, -1))  # u
        self.norm = nn.GroupNorm(H, D, eps=c.norm_eps)
        nn.init.normal_(self.mix_down.weight, std=1e-2 * D**-0.5)
        for layer in (self.receptance, self.key, self.value, self.gate, self.out):
            nn.init.normal_(layer.weight, std=D**-0.5)
        with torch.no_grad():  # half-lives from below one token to hundreds
            self.decay.up.bias.copy_(-6 + 5 * (torch.arange(D) / max(D - 1, 1)) ** 0.9)

    def init_state(self, batch_size: int) -> RWKV6State:
        c, w = self.config, self.out.weight
        K = c.d_model // c.n_heads
        S = w.new_zeros(batch_size, c.n_heads, K, K, dtype=torch.promote_types(w.dtype, torch.float32))
        return RWKV6State(S, empty(w, batch_size, c.d_model))

    def forward(self, x: Float[Tensor, "B T D"], state: RWKV6State) -> tuple[Float[Tensor, "B T D"], RWKV6State]:
        c, dtype = self.config, state.S.dtype
        before, last = shift(x, state.last)
        z = self.mix_down(torch.addcmul(x, before, self.mix_first.to(x.dtype))).tanh().chunk(USES, dim=-1)
        x_r, x_w, x_k, x_v, x_g = (
            torch.addcmul(x, before, mu + (part @ up).to(x.dtype))
            for mu, part, up in zip(self.mixing.to(x.dtype).unbind(0), z, self.mix_up.unbind(0), strict=True)
        )
        r, k, v, g, decay = self.receptance(x_r), self.key(x_k), self.value(x_v), self.gate(x_g), self.decay(x_w)
        with torch.autocast(x.device.type, enabled=False):
            heads = (t.to(dtype).unflatten(-1, (c.n_heads, -1)).transpose(1, 2) for t in (r, k, v, -decay.to(dtype).exp()))
            r, k, v, log_w = heads
            y, S = rwkv6_chunkwise(r, k, v, self.bonus.to(dtype), log_w, state.S, chunk_size=c.chunk_size)
            y = y.transpose(1, 2).flatten(2).flatten(0, 1)
            y = F.group_norm(y, c.n_heads, self.norm.weight.to(dtype), self.norm.bias.to(dtype), c.norm_eps)
            y = (y.view(x.shape) * F.silu(g.to(dtype))).to(g.dtype)
        return self.out(y), RWKV6State(S, last)

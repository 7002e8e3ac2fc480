"""Aaren: attention whose query is a learned token, so that it streams as a recurrent network and trains as a Transformer.

Source: Attention as an RNN (Feng et al., arXiv:2405.13956).

    q   = W_q x_q                                   x_q: a learned token, the same at every position; H heads of K = D / H
    k_t, v_t = W_k x_t, W_v x_t
    s_t = q . k_t / sqrt(K)                         a number a head and token: W_k^T q is multiplied once, not W_k by every token
    o_t = sum_{i<=t} exp(s_i) v_i / sum_{i<=t} exp(s_i)
    y_t = W_o concat_h(o_t)

An Aaren is a running mean whose weights are learned: token t moves the mean by exp(s_t) over the sum so far, 1 / t where all
scores are alike. Order enters by stacking. With `forget="gate"` every weight is multiplied by a_t = sigmoid(w_a x_t + b_a) before
token t is read, so that the mean can leave its past behind. `n_readouts` learned tokens a head read the same values.

State: the paper's (m, u, w): greatest score, sum of the weights and weighted sum of the values; 4 B (D + 2 H) bytes a readout in
float32, whatever the length of the stream.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.linear import Linear, weight_of
from memseq.ops.attention import NOTHING
from memseq.ops.prefix_softmax import Sums, join, prefix_softmax_chunkwise, prefix_softmax_last, prefix_softmax_step

__all__ = ["Aaren", "AarenConfig", "AarenState"]


class AarenState(NamedTuple):
    maximum: Float[Tensor, "B G"]  # m; NOTHING before the first token; G = heads x readouts
    weight: Float[Tensor, "B G"]  # u
    total: Float[Tensor, "B G K"]  # w; total / weight is what is read


@dataclass(frozen=True, kw_only=True)
class AarenConfig:
    d_model: int
    n_heads: int = 4
    n_readouts: int = 1  # learned query tokens: means of the same values by other weights
    forget: Literal["never", "gate"] = "never"  # the paper's; or a gate that fades the past
    chunk_size: int = 16  # speed and rounding only

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, 0.0)
        if self.n_readouts < 1 or self.chunk_size < 1:
            raise ConfigError(f"n_readouts={self.n_readouts} and chunk_size={self.chunk_size} must be at least 1")
        if self.forget not in ("never", "gate"):
            raise ConfigError(f"forget must be 'never' or 'gate', got {self.forget!r}")

    def build(self) -> "Aaren":
        return Aaren(self)


class Aaren(Memory[AarenState]):
    def __init__(self, config: AarenConfig) -> None:
        super().__init__()
        self.config = config
        D, H, R = config.d_model, config.n_heads, config.n_readouts
        self.token = nn.Parameter(torch.randn(R, D))
        self.query, self.key, self.value = (Linear(D, D, bias=False) for _ in range(3))
        self.out = Linear(R * D, D, bias=False)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        self.gate = nn.Linear(D, H * R) if config.forget == "gate" else None
        if self.gate is not None:
            nn.init.constant_(self.gate.bias, 5.0)  # a = 0.993: half of a weight is left after 100 tokens

    def init_state(self, batch_size: int) -> AarenState:
        G, K = self.config.n_heads * self.config.n_readouts, self.config.d_model // self.config.n_heads
        like = self._wide(self.value.weight.new_zeros(()))
        return AarenState(like.new_full((batch_size, G), NOTHING), like.new_zeros(batch_size, G), like.new_zeros(batch_size, G, K))

    def forward(self, x: Float[Tensor, "B T D"], state: AarenState) -> tuple[Float[Tensor, "B T D"], AarenState]:
        v = self.value(x)
        with torch.autocast(x.device.type, enabled=False):
            s, log_a = self._scores(x)
            v, past = self._by_group(self._wide(v)), Sums(*state)
            if x.shape[1] == 1:
                o, after = prefix_softmax_step(s[..., 0], v[..., 0, :], past, log_a=None if log_a is None else log_a[..., 0])
                o = o[..., None, :]
            else:
                o, after = prefix_softmax_chunkwise(s, v, past, log_a=log_a, chunk_size=self.config.chunk_size)
        return self.out(o.transpose(1, 2).flatten(2).to(self.value.weight.dtype)), AarenState(*after)

    def advance(self, x: Float[Tensor, "B T D"], state: AarenState) -> AarenState:
        """A weighted sum of the inputs and one projection of it: no token has an output of its own."""
        if torch.is_autocast_enabled(x.device.type):  # values are rounded before they are summed: a replay must meet the same state
            return self(x, state)[1]
        self.check_input(x, state)
        s, log_a = self._scores(x)
        m, kept, weight, pooled = prefix_softmax_last(s, self._wide(x), state.maximum, log_a=log_a)
        W = self._wide(weight_of(self.value)).unflatten(0, (self.config.n_heads, -1))
        total = torch.einsum("b h r d, h k d -> b h r k", pooled.unflatten(1, (self.config.n_heads, -1)), W).flatten(1, 2)
        return AarenState(m, kept * state.weight + weight, kept[..., None] * state.total + total)

    def merge(self, first: AarenState, then: AarenState) -> AarenState:
        """The state of two streams one after the other, from the state of each: shards of a stream can be read in parallel.

        Exact for one memory that never forgets, whose inputs do not depend on what came before. Raises `ConfigError` with a gate,
        which fades the first stream by tokens of the second that its state no longer holds.
        """
        if self.gate is not None:
            raise ConfigError("states of an Aaren with forget='gate' cannot be merged; read the second stream after the first")
        return AarenState(*join(Sums(*first), Sums(*then)))

    def _scores(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """s and log a, [B, G, T] each: the product of keys and query, taken in the order that is cheap."""
        x, H = self._wide(x), self.config.n_heads
        q = F.linear(self._wide(self.token), self._wide(weight_of(self.query))).unflatten(1, (H, -1))
        W = self._wide(weight_of(self.key)).unflatten(0, (H, -1))
        scores = F.linear(x, torch.einsum("r h k, h k d -> h r d", q, W).flatten(0, 1)) * W.shape[1] ** -0.5
        if self.gate is None:
            return scores.mT, None
        return scores.mT, F.logsigmoid(F.linear(x, self._wide(weight_of(self.gate)), self._wide(self.gate.bias))).mT

    def _by_group(self, v: Tensor) -> Tensor:
        """[B, T, D] as [B, G, T, K]; all readouts of a head see its values."""
        v = v.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)
        return v if self.config.n_readouts == 1 else v.repeat_interleave(self.config.n_readouts, dim=1)

    @staticmethod
    def _wide(t: Tensor) -> Tensor:
        return t.to(torch.promote_types(t.dtype, torch.float32))

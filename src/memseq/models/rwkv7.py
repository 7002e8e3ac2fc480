"""The RWKV-7 language model as published: time mixing and channel mixing, with the values of the first layer in all others.

Source: Peng et al., "RWKV-7 'Goose' with Expressive Dynamic State Evolution" (arXiv:2503.14456).

    x   = LN E[tokens]
    x  += TimeMix(LN x)                                          `memories/rwkv7.py`; its values are, above the first layer,
                                                                 v + (v^1 - v) sigmoid(b_v + V_2 V_1 x^v)
    x  += W_v relu(W_k (u_t + (u_{t-1} - u_t) mu))^2             u = LN x
    h   = LN x,   logits = h W^T

v^1 are the values of the same token in the first layer: they are there when a layer above reads the token, and need no state.
State: for every layer that of its time mixing, and the last input of its channel mixing, 4 B D (K + 2) bytes in float32.
`memseq.retrofit.fla_weights.from_fla` reads the weights of fla's `RWKV7ForCausalLM`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.contract import empty
from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.sizes import check_at_least_one
from memseq.layers.token_shift import LowRank, shift
from memseq.memories.rwkv7 import RWKV7Config, RWKV7State, rank_of
from memseq.models.language_model import LanguageModel
from memseq.ops.cross_entropy import linear_cross_entropy

__all__ = ["RWKV7LM", "RWKV7LMConfig", "RWKV7LMState", "RWKV7LayerState"]


class RWKV7LayerState(NamedTuple):
    time: RWKV7State
    last: Float[Tensor, "B D"]  # the last input of the channel mixing


class RWKV7LMState(NamedTuple):
    layers: tuple[RWKV7LayerState, ...]


@dataclass(frozen=True, kw_only=True)
class RWKV7LMConfig:
    vocab_size: int
    layer: RWKV7Config
    n_layers: int
    value_rank: int | None = None  # of the gate between two layers' values; None: 1.7 sqrt(d_model) to the nearest 32, at least 32
    hidden_size: int | None = None  # of the channel mixing; None: 4 d_model
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size must be at least 2, got {self.vocab_size}")
        check_at_least_one(self, "n_layers", "value_rank", "hidden_size")

    @property
    def d_model(self) -> int:
        return self.layer.d_model

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "RWKV7LMConfig":
        """Of a `presets.Size`, with heads of 64 where the width allows."""
        layer = RWKV7Config(d_model=size.d_model, n_heads=size.d_model // math.gcd(64, size.d_model))
        return cls(vocab_size=vocab_size, layer=layer, n_layers=size.n_layers)

    def build(self) -> "RWKV7LM":
        return RWKV7LM(self)


class ChannelMixing(nn.Module):
    """`y, last = mixing(u, last)`: every channel of a token and the one before, through hidden units that are squared."""

    def __init__(self, d_model: int, hidden_size: int, depth: float) -> None:
        super().__init__()
        place = torch.arange(d_model) / d_model
        self.mixing = nn.Parameter(1 - place ** (1 - depth) ** 4)  # upper layers look less far back
        self.up = Linear(d_model, hidden_size, bias=False)
        self.down = Linear(hidden_size, d_model, bias=False)
        nn.init.normal_(self.up.weight, std=d_model**-0.5)

    def forward(self, u: Float[Tensor, "B T D"], last: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B D"]]:
        before, last = shift(u, last)
        return self.down(self.up(torch.addcmul(u, before, self.mixing.to(u.dtype))).relu().square()), last


class RWKV7Block(nn.Module):
    def __init__(self, config: RWKV7LMConfig, index: int) -> None:
        super().__init__()
        D, n = config.d_model, config.n_layers
        self.time_norm, self.channel_norm = (nn.LayerNorm(D, eps=config.norm_eps) for _ in range(2))
        self.time = config.layer.build()
        self.channel = ChannelMixing(D, config.hidden_size or 4 * D, index / n)
        self.share = LowRank(D, D, rank_of(config.value_rank, D, 1.7)) if index else None  # the gate of the first layer's values
        with torch.no_grad():
            nn.init.normal_(self.channel.down.weight, std=(self.channel.down.in_features * 2 * n) ** -0.5)
            self.time.out.weight.mul_((2 * n) ** -0.5)
            if self.share is not None:
                self.share.up.bias.copy_(0.73 - 0.4 * (torch.arange(D) / max(D - 1, 1) - 0.5))

    def forward(
        self, x: Float[Tensor, "B T D"], state: RWKV7LayerState, first: Float[Tensor, "B T D"] | None
    ) -> tuple[Float[Tensor, "B T D"], RWKV7LayerState, Float[Tensor, "B T D"]]:
        """Also the values of the first layer: `first`, or where there are none yet this layer's own."""
        kept = [] if first is None else [first]
        y, time = self.time.mix(self.time_norm(x), state.time, self._values(kept))
        x = x + y
        y, last = self.channel(self.channel_norm(x), state.last)
        return x + y, RWKV7LayerState(time, last), kept[0]

    def _values(self, kept: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def values(v: Tensor, x_v: Tensor) -> Tensor:
            if self.share is None:
                kept.append(v)
                return v
            return torch.lerp(v, kept[0], self.share(x_v).sigmoid().to(v.dtype))

        return values


class RWKV7LM(LanguageModel[RWKV7LMState]):
    def __init__(self, config: RWKV7LMConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.d_model, config.vocab_size
        self.embedding = nn.Embedding(V, D)
        self.first_norm, self.norm = (nn.LayerNorm(D, eps=config.norm_eps) for _ in range(2))
        self.blocks = nn.ModuleList(RWKV7Block(config, i) for i in range(config.n_layers))
        self.output = Linear(D, V, bias=False)
        for weight in (self.embedding.weight, self.output.weight):
            nn.init.normal_(weight, std=D**-0.5)

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.output(h)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return linear_cross_entropy(h, self.output.weight, targets)

    def init_state(self, batch_size: int) -> RWKV7LMState:
        last = empty(self.embedding.weight, batch_size, self.config.d_model)
        return RWKV7LMState(tuple(RWKV7LayerState(block.time.init_state(batch_size), last) for block in self.blocks))

    def features(self, tokens: Int[Tensor, "B T"], state: RWKV7LMState) -> tuple[Float[Tensor, "B T D"], RWKV7LMState]:
        x, first, after = self.first_norm(self.embedding(tokens)), None, []
        for block, before in zip(self.blocks, state.layers, strict=True):
            x, end, first = block(x, before, first)
            after.append(end)
        return self.norm(x), RWKV7LMState(tuple(after))

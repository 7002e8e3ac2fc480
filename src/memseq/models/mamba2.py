"""The Mamba-2 language model as published: nothing but Mamba-2 layers.

Source: Dao and Gu, "Transformers are SSMs" (arXiv:2405.21060).

    x   = E[tokens]
    x  += Mamba2(RMSNorm x)          n_layers times; no feedforward
    h   = RMSNorm x,   logits = h E^T          or h W^T with a head of its own

The residual stream is float32 at least, whatever the weights are. State: one Mamba-2 state a layer.
`memseq.retrofit.from_mamba2` reads the weights of transformers' `Mamba2ForCausalLM` into it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.head_norm import HeadNorm
from memseq.layers.linear import Linear
from memseq.memories.mamba2 import Mamba2Config, Mamba2State
from memseq.models.language_model import LanguageModel
from memseq.ops.cross_entropy import linear_cross_entropy

__all__ = ["Mamba2LM", "Mamba2LMConfig", "Mamba2LMState"]


class Mamba2LMState(NamedTuple):
    layers: tuple[Mamba2State, ...]


@dataclass(frozen=True, kw_only=True)
class Mamba2LMConfig:
    vocab_size: int
    layer: Mamba2Config
    n_layers: int
    norm_eps: float = 1e-5
    tied: bool = True  # one matrix embeds and predicts

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.n_layers < 1:
            raise ConfigError(
                f"vocab_size must be at least 2 and n_layers at least 1, got vocab_size={self.vocab_size}, n_layers={self.n_layers}"
            )

    @property
    def d_model(self) -> int:
        return self.layer.d_model

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "Mamba2LMConfig":
        """Two layers for each block of other models, which have a feedforward beside their memory."""
        return cls(vocab_size=vocab_size, layer=Mamba2Config.of_size(size), n_layers=2 * size.n_layers)

    def build(self) -> "Mamba2LM":
        return Mamba2LM(self)


class Mamba2LM(LanguageModel[Mamba2LMState]):
    def __init__(self, config: Mamba2LMConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.d_model, config.vocab_size
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList(config.layer.build() for _ in range(config.n_layers))
        self.norms = nn.ModuleList(HeadNorm(D, config.norm_eps) for _ in range(config.n_layers))
        self.norm = HeadNorm(D, config.norm_eps)
        self.output = None if config.tied else Linear(D, V, bias=False)
        with torch.no_grad():
            for weight in (self.embedding.weight, *([] if self.output is None else [self.output.weight])):
                nn.init.normal_(weight, std=D**-0.5)
            for layer in self.layers:
                layer.out.weight.mul_(config.n_layers**-0.5)

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return super().head(h) if self.output is None else self.output(h)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return super().score(h, targets) if self.output is None else linear_cross_entropy(h, self.output.weight, targets)

    def init_state(self, batch_size: int) -> Mamba2LMState:
        return Mamba2LMState(tuple(layer.init_state(batch_size) for layer in self.layers))

    def features(self, tokens: Int[Tensor, "B T"], state: Mamba2LMState) -> tuple[Float[Tensor, "B T D"], Mamba2LMState]:
        x = self.embedding(tokens)
        dtype, after = x.dtype, []
        x = x.to(torch.promote_types(dtype, torch.float32))
        for norm, layer, before in zip(self.norms, self.layers, state.layers, strict=True):
            y, end = layer(norm(x).to(dtype), before)
            x = x + y
            after.append(end)
        return self.norm(x).to(dtype), Mamba2LMState(tuple(after))

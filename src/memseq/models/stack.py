"""A stack of blocks, each of one or more memories and a feedforward: any tuple of memories made into a language model.

    x   = E[tokens]
    x  += dropout(memory(LN x))      for each memory of the block
    x  += dropout(FFN(LN x))
    h   = LN x,   logits = h E^T     (tied)

Pre-norm residual blocks as in GPT-2; a memory brings its own positions, or needs none.
State: one tuple of memory states a block.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.feedforward import FeedForward
from memseq.models.language_model import LanguageModel
from memseq.state import State

__all__ = ["Block", "Stack", "StackConfig", "StackState", "check_stack", "init_weights", "memories_of", "segment_length_of"]


def memories_of(layer: Any) -> tuple[Any, ...]:
    """The memory configs of one layer: a layer is one config or a tuple of them."""
    return layer if isinstance(layer, tuple) else (layer,)


def check_stack(config: Any) -> None:
    """Raise `ConfigError` unless every memory of `config.layers` has the width of the model and the numbers make sense."""
    if config.vocab_size < 2:
        raise ConfigError(f"vocab_size must be at least 2, got {config.vocab_size}")
    if not config.layers:
        raise ConfigError("layers is empty; give at least one memory config")
    for i, layer in enumerate(config.layers):
        for memory in memories_of(layer):
            if memory.d_model != config.d_model:
                raise ConfigError(f"layers[{i}] has d_model={memory.d_model} and the model d_model={config.d_model}; make them equal")
    if config.ff_mult <= 0:
        raise ConfigError(f"ff_mult must be above zero, got {config.ff_mult}")
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"dropout must lie in [0, 1), got {config.dropout}")


def segment_length_of(layers: tuple[Any, ...]) -> int | None:
    """The longest segment among the memories of a stack, None where none has one."""
    lengths = [getattr(memory, "segment_length", None) for layer in layers for memory in memories_of(layer)]
    return max((n for n in lengths if n), default=None)


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """`layers` holds a memory config a block, or a tuple of them: `layers=4 * ((window, slots),)`."""

    vocab_size: int
    d_model: int
    layers: tuple[Any, ...]
    ff_mult: float = 4.0  # hidden units of the feedforward, in d_model
    dropout: float = 0.0  # of the embedding and of every residual branch

    def __post_init__(self) -> None:
        check_stack(self)

    def build(self) -> "Stack":
        return Stack(self)


class Block(nn.Module):
    """The memories of one layer and its feedforward, each a pre-norm residual branch."""

    def __init__(self, config: Any, layer: Any) -> None:
        super().__init__()
        self.memories = nn.ModuleList(memory.build() for memory in memories_of(layer))
        self.norms = nn.ModuleList(nn.LayerNorm(config.d_model) for _ in self.memories)
        self.ff_norm = nn.LayerNorm(config.d_model)
        self.ff = FeedForward(config.d_model, round(config.ff_mult * config.d_model))
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def init_state(self, batch_size: int) -> tuple[State, ...]:
        return tuple(memory.init_state(batch_size) for memory in self.memories)

    def remember(self, x: Tensor, states: tuple[State, ...], mask: Tensor | None = None) -> tuple[Tensor, tuple[State, ...]]:
        """The memories' branches; a mask is for memories that are `Masked` (`models/backbone.py`).

        The model has checked its input and its whole state: here a memory is called without checking it again.
        """
        after = []
        for norm, memory, state in zip(self.norms, self.memories, states, strict=True):
            y, state = nn.Module.__call__(memory, norm(x), state) if mask is None else memory.read_masked(norm(x), state, mask)
            x = x + self.dropout(y)
            after.append(state)
        return x, tuple(after)

    def think(self, x: Tensor) -> Tensor:
        """The feedforward's branch."""
        return x + self.dropout(self.ff(self.ff_norm(x)))


class StackState(NamedTuple):
    layers: tuple[tuple[State, ...], ...]


class Stack(LanguageModel[StackState]):
    """`config` is a `StackConfig` or says as much: vocab_size, d_model, layers, ff_mult, dropout (such as those of Titans' models)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in config.layers)
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        init_weights(self)

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return all(memory.bounded for block in self.blocks for memory in block.memories)

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return all(memory.causal for block in self.blocks for memory in block.memories)

    @property
    def segment_length(self) -> int | None:
        return segment_length_of(self.config.layers)

    def init_state(self, batch_size: int) -> StackState:
        return StackState(tuple(block.init_state(batch_size) for block in self.blocks))

    def features(self, tokens: Int[Tensor, "B T"], state: StackState) -> tuple[Float[Tensor, "B T D"], StackState]:
        x = self.dropout(self.embedding(tokens))
        after = []
        for block, states in zip(self.blocks, state.layers, strict=True):
            x, states = block.remember(x, states)
            x = block.think(x)
            after.append(states)
        return self.norm(x), StackState(tuple(after))


@torch.no_grad()
def init_weights(model: Any) -> None:
    """Embeddings of standard deviation D^-1/2, feedforwards likewise, their outputs shrunk by the depth of the residual stream."""
    D, branches = model.config.d_model, 2 * len(model.blocks)
    nn.init.normal_(model.embedding.weight, std=D**-0.5)
    for block in model.blocks:
        nn.init.normal_(block.ff.up.weight, std=D**-0.5)
        nn.init.normal_(block.ff.down.weight, std=(block.ff.down.in_features * branches) ** -0.5)
        for bias in (block.ff.up.bias, block.ff.down.bias):
            nn.init.zeros_(bias)

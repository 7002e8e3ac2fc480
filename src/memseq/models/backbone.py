"""What a segment-recurrent system asks of a network: to read vectors, one segment of them, in any pieces.

    x        = backbone.embed(tokens)                 [B, T] -> [B, T, D]
    h, cache = backbone.read(x, cache)                [B, T, D] -> [B, T, D], causal; whole = any cut
    logits   = backbone.head(h)                       score(h, targets) is the summed loss without a table of logits

RMT, ARMT, HMT and their kin put vectors of their own among the embeddings and carry something from segment to segment; what the
network itself keeps ends with the segment. `init_cache(rows, length)` is this cache for segments of at most `length` inputs: a
tree of tensors like any state, batch first, of fixed shapes, rows at positions of their own. It is made anew at every border.

Two kinds: a stack of our memories (`StackBackbone`), and any causal language model of transformers (`retrofit/backbone.py`).
"""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.models.stack import Stack, StackState, memories_of
from memseq.ops.cross_entropy import linear_cross_entropy
from memseq.state import State, auxiliary

__all__ = ["Backbone", "Masked", "StackBackbone", "Visitor", "build_backbone"]


@runtime_checkable
class Visitor(Protocol):
    """Who comes along with a reading and meets the residual stream at every layer."""

    def before(self, layer: int, x: Tensor) -> Tensor:
        """What layer `layer` is to read instead of x [B, T, D]."""
        ...

    def after(self, layer: int, x: Tensor) -> None:
        """Sees what layer `layer` made."""
        ...


@runtime_checkable
class Masked(Protocol):
    """A memory that can be told which inputs of the open segment see which."""

    def read_masked(self, x: Tensor, state: Any, mask: Tensor) -> tuple[Tensor, Any]:
        """As `forward`, within one segment; mask [T, S] is True where an input of x sees one of the S read so far, x included."""
        ...


class Backbone(nn.Module):
    """A network without a past beyond its segment. `config` says `vocab_size` and `d_model`."""

    config: Any
    takes_mask: bool  # whether `read` can be told what sees what; otherwise it is causal only

    @property
    def n_layers(self) -> int:
        """Layers that a `Visitor` meets, numbered from 0."""
        raise TypeError(f"{type(self).__name__} must define n_layers")

    @property
    def embedding(self) -> nn.Embedding:
        raise TypeError(f"{type(self).__name__} must define embedding")

    def check_length(self, length: int) -> None:
        """Raise `ConfigError` where segments of `length` inputs are longer than the network can read."""

    def init_cache(self, batch_size: int, length: int) -> State:
        """The cache of segments that have read nothing and will read at most `length` inputs."""
        raise TypeError(f"{type(self).__name__} must define init_cache(batch_size, length)")

    def read(
        self,
        x: Float[Tensor, "B T D"],
        cache: State | None,
        *,
        mask: Bool[Tensor, "T S"] | None = None,
        visitor: Visitor | None = None,
    ) -> tuple[Float[Tensor, "B T D"], State | None]:
        """Read x after what the cache holds: what the head reads, and the cache with x in it.

        `cache=None` reads a whole segment at once and returns no cache. Without a `mask` every input sees itself and all
        before it; a mask needs rows at one position, and covers the S inputs read so far, x included.
        """
        raise TypeError(f"{type(self).__name__} must define read(x, cache)")

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        return self.embedding(tokens)

    def new_vectors(self, n: int) -> Float[Tensor, "n D"]:
        """n vectors to stand among the embeddings and to be learned, in float32 at least: random, of the size of an embedding."""
        weight = self.embedding.weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return weight.std() * torch.randn_like(weight.new_empty(n, weight.shape[1]))

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of the next token."""
        return F.linear(h, self.embedding.weight)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        """The sum of the losses in nats; targets of -100 are not scored."""
        return linear_cross_entropy(h, self.embedding.weight, targets)


class StackBackbone(Backbone):
    """A `Stack`: its state is the cache. Memories with segments of their own must not end them before the outer segment ends."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.config, self.stack = stack.config, stack
        memories = [memory for block in stack.blocks for memory in block.memories]
        self.takes_mask = all(isinstance(memory, Masked) for memory in memories)
        if auxiliary(stack.init_state(1)) is not None:
            raise ConfigError("a memory that adds to the loss by its state cannot stand in a backbone, whose state ends with the segment")
        if not stack.bounded:
            grows = next(type(memory.config).__name__ for memory in memories if isinstance(memory, Memory) and not memory.bounded)
            raise ConfigError(f"a backbone keeps a cache of fixed size and {grows} grows; use SegmentAttentionConfig")

    @property
    def n_layers(self) -> int:
        return len(self.stack.blocks)

    @property
    def embedding(self) -> nn.Embedding:
        return self.stack.embedding

    def check_length(self, length: int) -> None:
        for i, layer in enumerate(self.config.layers):
            for memory in memories_of(layer):
                own = getattr(memory, "segment_length", None)
                if own is not None and own < length:
                    raise ConfigError(
                        f"layers[{i}] ends its segment after {own} inputs and the backbone reads {length} (tokens and memory);"
                        f" give it segment_length={length}"
                    )

    def init_cache(self, batch_size: int, length: int) -> StackState:
        return self.stack.init_state(batch_size)

    def read(
        self,
        x: Float[Tensor, "B T D"],
        cache: StackState | None,
        *,
        mask: Bool[Tensor, "T S"] | None = None,
        visitor: Visitor | None = None,
    ) -> tuple[Float[Tensor, "B T D"], StackState | None]:
        held = self.stack.init_state(x.shape[0]) if cache is None else cache
        x, after = self.stack.dropout(x), []
        for i, (block, states) in enumerate(zip(self.stack.blocks, held.layers, strict=True)):
            if visitor is not None:
                x = visitor.before(i, x)
            x, states = block.remember(x, states, mask)
            x = block.think(x)
            if visitor is not None:
                visitor.after(i, x)
            after.append(states)
        return self.stack.norm(x), None if cache is None else StackState(tuple(after))


def build_backbone(config: Any) -> Backbone:
    """What a config of a backbone builds: a `StackConfig`, or one that builds a `Backbone` itself."""
    built = config.build()
    if isinstance(built, Stack):
        return StackBackbone(built)
    if not isinstance(built, Backbone):
        raise ConfigError(
            f"backbone must be a StackConfig or the config of a Backbone, such as HuggingFaceConfig, got {type(config).__name__}"
        )
    return built

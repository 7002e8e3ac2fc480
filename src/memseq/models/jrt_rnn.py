"""JRT-RNN as a language model: a prompt is read twice, layer by layer; what follows is an ordinary stream.

Source: *Just read twice: closing the recall gap for recurrent language models* (Arora et al., arXiv:2407.05483); the pattern of
blocks is that of Based (arXiv:2402.18668).

    logits, state = model.read_prefix(prompt, state)     every layer knows all of the prompt before it answers for any of it
    logits, state = model(tokens, state)                 the law, from there on; a stream without a prefix is that of Based
    model.prefix_loss(masked, labels, state)             the prompt's loss in training: hidden tokens, told in their places

Layer by layer: layer l sums its encoder's keys and values over the whole prompt, then reads it in order, and only then layer l + 1
begins. Both passes go in pieces of `chunk_size` tokens, so that a prompt costs M D numbers beside the activations of one piece.
Memories that encode nothing (windows, convolutions) read the prompt as they read anything.

Training, as published: half of a sequence is prefix; L = L_next(rest) + 0.25 L_hidden(prefix), each a mean over its own tokens, 15 % of
the prefix hidden (`tasks.masking.mask_tokens`), no next-token loss in the prefix, which would be told the answer. `PrefixCell` is that
loss for memory replay: a prefix is one segment, what follows any number of them.

The published feedforward is SwiGLU of 2D units; here it is the stack's, of equal parameters (`ff_mult=3`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError, InputError
from memseq.layers.prefix import PrefixMemory
from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.based import BasedConfig
from memseq.memories.jrt_rnn import JRTRNNConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.stack import Block, Stack, StackConfig, StackState
from memseq.ops.cross_entropy import IGNORE, linear_cross_entropy
from memseq.state import State, choose, select, stack

if TYPE_CHECKING:
    from memseq.models.presets import Size

__all__ = ["JRTRNNLM", "JRTRNNLMConfig", "PrefixCell", "PrefixSegment", "block_pattern"]


def block_pattern(
    d_model: int,
    *,
    n_layers: int = 26,
    linear_at: Sequence[int] = (1, 6, 11, 16, 21),
    n_heads: int = 16,
    feature_size: int = 16,
    window: int = 256,
    linear: type[JRTRNNConfig] | type[BasedConfig] = JRTRNNConfig,
) -> tuple[Any, ...]:
    """The published order of layers: linear attention at `linear_at`, a window of attention after each, short convolutions elsewhere.

    The defaults are those of 360 million parameters at d_model=1024; 1.3 billion: d_model=1792, n_layers=36, linear_at=(1, 6, 11, 16,
    21, 27, 33).
    """
    if not all(0 <= at < n_layers for at in linear_at):
        raise ConfigError(f"linear_at={tuple(linear_at)} names layers beyond the n_layers={n_layers} there are, counted from 0")
    layers: list[Any] = n_layers * [BaseConvConfig(d_model=d_model)]
    for at in linear_at:
        if at + 1 < n_layers:
            layers[at + 1] = SlidingWindowConfig(d_model=d_model, n_heads=n_heads, window=window)
    for at in linear_at:
        layers[at] = linear(d_model=d_model, n_heads=n_heads, feature_size=feature_size)
    return tuple(layers)


@dataclass(frozen=True, kw_only=True)
class JRTRNNLMConfig(StackConfig):
    """A stack, at least one of whose memories encodes a prefix."""

    ff_mult: float = 3.0

    def build(self) -> "JRTRNNLM":
        return JRTRNNLM(self)

    @classmethod
    def of_size(cls, size: "Size", vocab_size: int) -> "JRTRNNLMConfig":
        """The published pattern in the depth of `size`: one linear layer in five, the first at 1."""
        linear_at = range(1, size.n_layers, 5)
        layers = block_pattern(size.d_model, n_layers=size.n_layers, linear_at=linear_at, n_heads=size.n_heads, window=size.window)
        return cls(vocab_size=vocab_size, d_model=size.d_model, layers=layers)


class JRTRNNLM(Stack):
    def __init__(self, config: JRTRNNLMConfig) -> None:
        super().__init__(config)
        if not any(isinstance(memory, PrefixMemory) for block in cast(Sequence[Block], self.blocks) for memory in block.memories):
            raise ConfigError("none of the layers encodes a prefix; give one a JRTRNNConfig, or build a StackConfig")

    def prefix_features(
        self, tokens: Int[Tensor, "B M"], state: StackState, prefix: Bool[Tensor, "B named"] | None = None, *, chunk_size: int = 4096
    ) -> tuple[Float[Tensor, "B M D"], StackState]:
        """`features` of tokens that are known together: those that `prefix` names (all where it is None), the others being read after."""
        self.check_input(tokens, state)
        if prefix is not None and prefix.shape != tokens.shape:
            raise InputError(f"prefix names tokens, one truth value each: {list(tokens.shape)}, got {list(prefix.shape)}")
        pieces = [self.dropout(self.embedding(piece)) for piece in tokens.split(chunk_size, dim=1)]
        keeps = len(pieces) * [None] if prefix is None else prefix.split(chunk_size, dim=1)
        layers = []
        for block, states in zip(cast(Sequence[Block], self.blocks), state.layers, strict=True):
            after = []
            for norm, memory, s in zip(block.norms, block.memories, states, strict=True):
                if isinstance(memory, PrefixMemory):
                    for x, keep in zip(pieces, keeps, strict=True):
                        s = memory.encode(norm(x), s, keep)
                for i, x in enumerate(pieces):
                    y, s = memory(norm(x), s)
                    pieces[i] = x + block.dropout(y)
                after.append(s)
            pieces = [block.think(x) for x in pieces]
            layers.append(tuple(after))
        return self.norm(torch.cat(pieces, dim=1)), StackState(tuple(layers))

    def read_prefix(
        self, tokens: Int[Tensor, "B M"], state: StackState, prefix: Bool[Tensor, "B named"] | None = None, *, chunk_size: int = 4096
    ) -> tuple[Float[Tensor, "B M V"], StackState]:
        """Logits at every token, which has seen the whole prefix, and the state to read on with.

        The last token's logits predict what follows. `prefix` names the tokens that are encoded, any of them in any row: with the
        first M_b of row b, prefixes of different lengths and what follows them are one call.
        """
        h, state = self.prefix_features(tokens, state, prefix, chunk_size=chunk_size)
        return self.head(h), state

    def read_prompts(self, prompts: Sequence[Any], *, chunk_size: int = 4096) -> tuple[Float[Tensor, "B V"], StackState]:
        """Prompts of any lengths (lists or tensors of token ids) as prefixes of new streams: what each predicts, and their states.

        Prompts of one length are read together; none is padded.
        """
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise InputError("a prompt is at least one token, and there is at least one prompt")
        device, lengths = self.embedding.weight.device, [len(prompt) for prompt in prompts]
        order, logits, states = [], [], []
        for length in dict.fromkeys(lengths):
            rows = [row for row, other in enumerate(lengths) if other == length]
            tokens = torch.stack([torch.as_tensor(prompts[row], dtype=torch.int64) for row in rows]).to(device)
            h, state = self.prefix_features(tokens, self.init_state(len(rows)), chunk_size=chunk_size)
            order += rows
            logits.append(self.head(h[:, -1]))
            states.append(state)
        back = torch.tensor(order).argsort()
        return torch.cat(logits)[back.to(device)], select(stack(states), back)

    def prefix_loss(
        self, tokens: Int[Tensor, "B M"], labels: Int[Tensor, "B M"], state: StackState, prefix: Bool[Tensor, "B named"] | None = None
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""], StackState]:
        """The sum of the losses at labels other than -100, told in their own places, their number, and the state after the prefix."""
        h, state = self.prefix_features(tokens, state, prefix)
        total = linear_cross_entropy(h.flatten(0, 1), self.embedding.weight, labels.flatten())
        return total, (labels != IGNORE).sum(), state


class PrefixSegment(NamedTuple):
    """A prefix as a segment of a training window; the segments after it are those of any stream."""

    tokens: Int[Tensor, "B M"]
    targets: Int[Tensor, "B M"]  # of the hidden tokens, in their places; -100 elsewhere
    reset: Bool[Tensor, "B"]
    weight: float  # of its sum of losses: 0.25 n_next / n_hidden makes the window L_next + 0.25 L_hidden, both means, after / n_next


class PrefixCell(nn.Module):
    """A model with a prefix as a cell of memory replay: a `PrefixSegment` is encoded, any other segment read on."""

    def __init__(self, model: JRTRNNLM) -> None:
        super().__init__()
        self.model = model

    def loss(self, segment: Any, state: State) -> tuple[Tensor, State]:
        state = self._begin(segment, state)
        if isinstance(segment, PrefixSegment):
            total, _, state = self.model.prefix_loss(segment.tokens, segment.targets, state)
            return segment.weight * total, state
        total, _, state = self.model.loss(segment.tokens, segment.targets, state)
        return total, state

    def advance(self, segment: Any, state: State) -> State:
        state = self._begin(segment, state)
        if isinstance(segment, PrefixSegment):
            return self.model.prefix_features(segment.tokens, state)[1]
        return self.model.advance(segment.tokens, state)

    def forward(self, segment: Any, state: State) -> tuple[Tensor, State]:
        return self.loss(segment, state)

    def _begin(self, segment: Any, state: State) -> State:
        if not segment.reset.any():
            return state
        fresh = self.model.init_state(len(segment.reset))
        return fresh if segment.reset.all() else choose(segment.reset, fresh, state)

"""A memory over tokens: `logits, state = model(tokens, state)`, and the two ways of training that need no logits.

    features(tokens, state) -> h [B, T, D], state        what a model defines
    logits = h E^T                                       E is the embedding (tied)
    loss(tokens, targets, state)                         the sum of the losses, without a [B, T, V] table at large V
    advance(tokens, state)                               the state alone: the first pass of memory replay

`logits[:, i]` predicts the token that follows `tokens[:, i]`.
"""

from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.contract import Memory, check_rows
from memseq.errors import InputError
from memseq.ops.cross_entropy import IGNORE, linear_cross_entropy
from memseq.ops.linear import linear
from memseq.state import auxiliary

__all__ = ["LanguageModel"]

S = TypeVar("S")


class LanguageModel(Memory[S]):
    """A subclass builds `self.embedding` (V x D) and defines `init_state` and `features`.

    Everything random (dropout) happens in `features`, so that `advance` and `loss` draw the same numbers.
    """

    embedding: nn.Embedding

    @property
    def vocab_size(self) -> int:
        return self.embedding.num_embeddings

    @property
    def segment_length(self) -> int | None:
        """Tokens that are best read at once: the segment that recurs, or None where any length serves."""
        return None

    def features(self, tokens: Int[Tensor, "B T"], state: S) -> tuple[Float[Tensor, "B T D"], S]:
        """What the head reads at every token, and the state after the last."""
        raise TypeError(f"{type(self).__name__} must define features(tokens, state)")

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of the next token."""
        return linear(h, self.embedding.weight)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        """The sum of the losses of features h in nats: what `head` and a cross-entropy give, without the table of logits."""
        return linear_cross_entropy(h, self.embedding.weight, targets)

    def forward(self, tokens: Int[Tensor, "B T"], state: S) -> tuple[Float[Tensor, "B T V"], S]:
        h, state = self.features(tokens, state)
        return self.head(h), state

    def step(self, tokens: Int[Tensor, "B"], state: S) -> tuple[Float[Tensor, "B V"], S]:
        logits, state = self(tokens[:, None], state)
        return logits[:, 0], state

    def advance(self, tokens: Int[Tensor, "B T"], state: S) -> S:
        self.check_input(tokens, state)
        return self.features(tokens, state)[1]

    def loss(self, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B targets"], state: S) -> tuple[Float[Tensor, ""], Int[Tensor, ""], S]:
        """The sum of the losses in nats, the number of scored tokens (targets other than -100), and the next state.

        While training, what the memories add of their own (`state.auxiliary`) is part of the sum.
        """
        self.check_input(tokens, state)
        if targets.shape != tokens.shape:
            raise InputError(
                f"targets have shape {list(targets.shape)} and tokens {list(tokens.shape)}; give one target a token, -100 for none"
            )
        h, after = self.features(tokens, state)
        total = self.score(h.flatten(0, 1), targets.flatten())
        if self.training:
            before, now = auxiliary(state), auxiliary(after)
            total = total if before is None or now is None else total + (now - before).sum()
        return total, (targets != IGNORE).sum(), after

    def check_input(self, tokens: Tensor, state: S) -> None:
        """Raise `InputError` or `StateError` where `tokens` [B, T] and `state` cannot be read together.

        Ids are checked against the vocabulary on the host only: on a GPU the comparison would wait for the device.
        """
        if tokens.ndim != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise InputError(
                f"{type(self).__name__} reads integer tokens of shape [B, T], got {tokens.dtype} of shape {list(tokens.shape)}"
            )
        if tokens.shape[1] == 0:
            raise InputError(f"{type(self).__name__} was given a piece of T = 0 tokens; give at least one, or keep the state as it is")
        if tokens.device.type == "cpu" and not (0 <= int(tokens.min()) and int(tokens.max()) < self.vocab_size):
            raise InputError(
                f"token ids must lie in 0 to {self.vocab_size - 1}, got {int(tokens.min())} to {int(tokens.max())};"
                " use the tokenizer the model was trained with"
            )
        check_rows(tokens.shape[0], tokens.device, state)

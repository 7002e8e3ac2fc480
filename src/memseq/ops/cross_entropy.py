"""Cross-entropy of a linear head, without the table of all logits.

    loss = sum over tokens of  logsumexp(E h) - (E h)[target]

The logits of T tokens over V words take 4 T V bytes, and as much again for their gradient. `chunked` computes them a
chunk of tokens at a time and recomputes each chunk in the backward pass, so that only one chunk is alive.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from memseq.ops.linear import linear

__all__ = ["IGNORE", "linear_cross_entropy"]

IGNORE = -100  # a target that is not scored
LOGITS_AT_ONCE = 1 << 24  # elements; 64 MiB of float32


def linear_cross_entropy(
    h: Float[Tensor, "tokens D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, "tokens"], *, logits_at_once: int = LOGITS_AT_ONCE
) -> Float[Tensor, ""]:
    """The sum of the losses (in nats) of the scored tokens, in float32 at least."""
    chunk = max(1, logits_at_once // weight.shape[0])
    if h.shape[0] <= chunk:
        return _whole(h, weight, targets)
    pieces = zip(h.split(chunk), targets.split(chunk), strict=True)
    return torch.stack([checkpoint(_whole, piece, weight, target, use_reentrant=False) for piece, target in pieces]).sum()


def _whole(h: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = linear(h, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")

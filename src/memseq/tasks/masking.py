"""Masked tokens: some are hidden, and the label at a hidden one is what stood there.

Source: BERT (Devlin et al., arXiv:1810.04805); always the mask token, as JRT-RNN (arXiv:2407.05483) hides the tokens of a prefix.

    inputs    x with the mask token at hidden places          labels    x at hidden places, -100 elsewhere

The choice is a function of the seed, made before a model sees the tokens: whatever reads them a second time (memory replay,
checkpoints) reads the same.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from memseq.errors import ConfigError
from memseq.tasks.task import IGNORE

__all__ = ["Masked", "mask_tokens"]


class Masked(NamedTuple):
    inputs: Int64[Tensor, "B T"]
    labels: Int64[Tensor, "B T"]  # at its own place, not one further: the model sees what follows


def mask_tokens(tokens: Int64[Tensor, "B T"], *, mask_token: int, seed: int, rate: float = 0.15) -> Masked:
    """Each token hidden with probability `rate`, on the host; the same seed hides the same places."""
    if not 0 < rate < 1:
        raise ConfigError(f"rate={rate} must lie between 0 and 1: the share of tokens that are hidden")
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < rate
    hidden = hidden.to(tokens.device)
    return Masked(tokens.masked_fill(hidden, mask_token), tokens.masked_fill(~hidden, IGNORE))

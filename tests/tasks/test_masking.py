"""Masked tokens: what is hidden is labelled, what is not is left."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.tasks.masking import mask_tokens
from memseq.tasks.task import IGNORE


def test_hidden_tokens_are_told_in_their_places():
    tokens = torch.randint(4, 50, (40, 100))
    inputs, labels = mask_tokens(tokens, mask_token=0, seed=3)
    hidden = inputs == 0
    assert torch.equal(torch.where(hidden, labels, inputs), tokens)
    assert bool((labels[~hidden] == IGNORE).all())
    assert abs(float(hidden.double().mean()) - 0.15) < 0.02
    assert abs(float((mask_tokens(tokens, mask_token=0, seed=3, rate=0.5).inputs == 0).double().mean()) - 0.5) < 0.03


def test_the_seed_alone_chooses():
    tokens = torch.randint(4, 50, (2, 30))
    first, _ = mask_tokens(tokens, mask_token=0, seed=5), torch.rand(3)
    assert torch.equal(mask_tokens(tokens, mask_token=0, seed=5).inputs, first.inputs)
    assert not torch.equal(mask_tokens(tokens, mask_token=0, seed=6).inputs, first.inputs)


def test_a_rate_is_a_share():
    with pytest.raises(ConfigError, match=r"rate=1\.0"):
        mask_tokens(torch.zeros(1, 2, dtype=torch.int64), mask_token=0, seed=0, rate=1.0)

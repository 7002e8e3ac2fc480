"""A model of every kind, as transformers sees it."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


from causal_lms import MODELS, built

from memseq.retrofit import MemseqForCausalLM


@pytest.fixture(params=MODELS)
def hf(request) -> MemseqForCausalLM:
    return built(request.param)

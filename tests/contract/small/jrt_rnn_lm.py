from typing import Any

from memseq.memories.base_conv import BaseConvConfig
from memseq.memories.jrt_rnn import JRTRNNConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.jrt_rnn import JRTRNNLMConfig


def configs() -> list[Any]:
    linear = JRTRNNConfig(d_model=12, n_heads=2, feature_size=3, chunk_size=4)
    window = SlidingWindowConfig(d_model=12, n_heads=2, window=3)
    return [JRTRNNLMConfig(vocab_size=13, d_model=12, layers=(BaseConvConfig(d_model=12), (linear, window)))]

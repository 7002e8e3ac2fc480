from typing import Any

from memseq.memories.jrt_rnn import JRTRNNConfig


def configs() -> list[Any]:
    return [JRTRNNConfig(d_model=12, n_heads=2, feature_size=3, chunk_size=4)]

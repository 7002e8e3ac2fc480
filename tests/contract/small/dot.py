from typing import Any

from memseq.layers.fast_weights import Matrix
from memseq.memories.atlas import DotConfig


def configs() -> list[Any]:
    return [DotConfig(d_model=4, n_heads=2, window=2, segment_length=6, architecture=Matrix())]

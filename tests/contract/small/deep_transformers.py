from typing import Any

from memseq.memories.atlas import DeepTransformersConfig


def configs() -> list[Any]:
    return [DeepTransformersConfig(d_model=4, n_heads=2, segment_length=6)]

from typing import Any

from memseq.memories.deltanet import DeltaNetConfig


def configs() -> list[Any]:
    return [
        DeltaNetConfig(d_model=16, n_heads=2, chunk_size=4),
        DeltaNetConfig(d_model=16, n_heads=2, key_size=5, value_size=3, conv_width=1, strength=2.0, chunk_size=16),
    ]

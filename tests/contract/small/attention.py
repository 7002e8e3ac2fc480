from typing import Any

from memseq.memories.attention import AttentionConfig


def configs() -> list[Any]:
    return [
        AttentionConfig(d_model=16, n_heads=2, block_size=5),
        AttentionConfig(d_model=16, n_heads=2, block_size=3, capacity=9),
    ]

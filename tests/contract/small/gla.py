from typing import Any

from memseq.memories.gla import GLAConfig


def configs() -> list[Any]:
    return [
        GLAConfig(d_model=16, n_heads=2, chunk_size=4),
        GLAConfig(d_model=16, n_heads=2, key_size=5, value_size=3, gate_rank=3, conv_width=3, chunk_size=16),
    ]

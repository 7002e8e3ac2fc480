from typing import Any

from memseq.memories.hgrn2 import HGRN2Config


def configs() -> list[Any]:
    return [
        HGRN2Config(d_model=16, n_heads=2, chunk_size=4),
        HGRN2Config(d_model=16, n_heads=2, lower_bound=0.3, conv_width=3, chunk_size=8),
    ]

from typing import Any

from memseq.memories.retnet import RetNetConfig


def configs() -> list[Any]:
    return [RetNetConfig(d_model=16, n_heads=2, chunk_size=4), RetNetConfig(d_model=16, n_heads=2, expand_value=1, conv_width=3)]

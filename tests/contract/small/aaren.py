from typing import Any

from memseq.memories.aaren import AarenConfig


def configs() -> list[Any]:
    return [
        AarenConfig(d_model=12, n_heads=2, chunk_size=4),
        AarenConfig(d_model=12, n_heads=2, n_readouts=2, forget="gate", chunk_size=3),
    ]

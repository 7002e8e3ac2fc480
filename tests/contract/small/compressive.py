from typing import Any

from memseq.memories.compressive import CompressiveConfig


def configs() -> list[Any]:
    small = {"d_model": 8, "n_heads": 2, "segment_length": 4, "rate": 2}
    return [
        CompressiveConfig(**small, window=4, compressed=3),
        CompressiveConfig(**small, window=0, compressed=5, compression="max", gradient="full", clamp=6),
    ]

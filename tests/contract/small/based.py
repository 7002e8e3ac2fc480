from typing import Any

from memseq.memories.based import BasedConfig


def configs() -> list[Any]:
    return [BasedConfig(d_model=12, n_heads=2, feature_size=3, chunk_size=4)]

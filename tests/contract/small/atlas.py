from typing import Any

from memseq.memories.atlas import AtlasConfig


def configs() -> list[Any]:
    return [AtlasConfig(d_model=4, n_heads=2, window=3, degree=2, segment_length=5, muon=2)]

from typing import Any

from memseq.memories.titans import TitansConfig
from memseq.models.titans_mag import TitansMAGConfig


def configs() -> list[Any]:
    memory = TitansConfig(d_model=8, n_heads=2, segment_length=4, chunk_size=4, expansion=1)
    shape = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "ff_mult": 1, "window": 3}
    return [TitansMAGConfig(**shape, n_layers=1, memory=memory, n_persistent=n) for n in (3, 0)]

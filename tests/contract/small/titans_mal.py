from typing import Any

from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.memories.titans import TitansConfig
from memseq.models.titans_mal import TitansMALConfig


def configs() -> list[Any]:
    memory = TitansConfig(d_model=8, n_heads=2, segment_length=4, chunk_size=4, expansion=1)
    window = SlidingWindowConfig(d_model=8, n_heads=2, window=3)
    shape = {"vocab_size": 11, "d_model": 8, "ff_mult": 1, "memory": memory, "window": window}
    return [TitansMALConfig(**shape, n_layers=1, n_persistent=n) for n in (3, 0)]

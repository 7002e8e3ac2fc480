from typing import Any

from memseq.memories.titans import TitansConfig
from memseq.models.titans_mac import TitansMACConfig


def configs() -> list[Any]:
    memory = TitansConfig(d_model=8, n_heads=2, segment_length=4, chunk_size=3, expansion=1)
    shape = {"vocab_size": 11, "d_model": 8, "n_heads": 2, "ff_mult": 1, "n_layers": 1}
    matrix = TitansConfig(d_model=8, n_heads=1, head_size=6, segment_length=3, chunk_size=3, depth=1, momentum=None)
    return [TitansMACConfig(**shape, memory=memory, n_persistent=2), TitansMACConfig(**shape, memory=matrix, n_persistent=0)]

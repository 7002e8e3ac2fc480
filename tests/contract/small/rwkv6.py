from typing import Any

from memseq.memories.rwkv6 import RWKV6Config


def configs() -> list[Any]:
    return [RWKV6Config(d_model=16, n_heads=2, mix_rank=3, decay_rank=4, chunk_size=4)]

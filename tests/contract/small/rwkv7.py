from typing import Any

from memseq.memories.rwkv7 import RWKV7Config


def configs() -> list[Any]:
    return [RWKV7Config(d_model=16, n_heads=2, decay_rank=3, rate_rank=3, gate_rank=4, chunk_size=4)]

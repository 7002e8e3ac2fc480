from typing import Any

from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.rwkv7 import RWKV7LMConfig


def configs() -> list[Any]:
    layer = RWKV7Config(d_model=8, n_heads=2, decay_rank=3, rate_rank=3, gate_rank=4, chunk_size=4)
    return [RWKV7LMConfig(vocab_size=13, layer=layer, n_layers=2, value_rank=3, hidden_size=12)]

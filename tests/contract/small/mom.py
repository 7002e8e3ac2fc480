from typing import Any

from memseq.layers.update_rules import AdditiveRule
from memseq.memories.mom import MoMConfig


def configs() -> list[Any]:
    small: dict[str, Any] = {"d_model": 8, "n_heads": 2, "key_size": 3, "value_size": 4, "chunk_size": 4}
    dense = {"form": "dense", "shared": False, "projections": "one", "n_memories": 3, "n_active": 1, "conv_width": 2}
    return [MoMConfig(**small), MoMConfig(**small, **dense, rule=AdditiveRule())]

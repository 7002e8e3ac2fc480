from typing import Any

from memseq.layers.update_rules import AdditiveRule
from memseq.memories.keyed_mom import KeyedMoMConfig


def configs() -> list[Any]:
    small: dict[str, Any] = {"d_model": 8, "n_heads": 2, "key_size": 3, "value_size": 4, "chunk_size": 4}
    return [KeyedMoMConfig(**small, n_memories=3), KeyedMoMConfig(**small, n_active=2, rule=AdditiveRule(), conv_width=2)]

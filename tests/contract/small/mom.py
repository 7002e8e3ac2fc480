from typing import Any

from memseq.layers.update_rules import AdditiveRule, DeltaRule
from memseq.memories.mom import MoMConfig


def configs() -> list[Any]:
    small: dict[str, Any] = {"d_model": 8, "n_heads": 2, "key_size": 3, "value_size": 4, "chunk_size": 4}
    return [
        MoMConfig(**small),
        MoMConfig(**small, form="dense", shared=False, n_memories=3, n_active=1, rule=DeltaRule(strength=1.5)),
        MoMConfig(**small, projections="one", rule=AdditiveRule(), conv_width=2),
    ]

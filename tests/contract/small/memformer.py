from typing import Any

from memseq.memories.memformer import MemformerConfig


def configs() -> list[Any]:
    small = {"d_model": 16, "n_heads": 2, "n_slots": 3, "segment_length": 4}
    return [
        MemformerConfig(**small),
        MemformerConfig(**small, update="gru", forget="none"),
        MemformerConfig(**small, forget="norm", keep_bias=1.0),
        MemformerConfig(d_model=16, n_heads=2, n_slots=5, segment_length=2),
    ]

from typing import Any

from memseq.memories.titans import TitansConfig


def configs() -> list[Any]:
    small = {"d_model": 8, "n_heads": 2, "segment_length": 4, "chunk_size": 3}
    return [
        TitansConfig(d_model=12, n_heads=2, segment_length=4, chunk_size=4, expansion=1, form="normed", step=0.01),
        TitansConfig(**small, depth=1, momentum=None, conv_width=1, gradient_limit=None),
        TitansConfig(**small, depth=3, expansion=1, form="residual", bias=True, forget=None, activation="silu"),
        TitansConfig(d_model=8, n_heads=2, segment_length=1, depth=1, gradient_limit=None, chunk_size=3),
        TitansConfig(d_model=8, n_heads=2, segment_length=4, steps="segment", expansion=1),
        TitansConfig(**small, expansion=1, head_size=3, retention="first", forget=0.3),
    ]

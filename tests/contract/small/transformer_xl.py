from typing import Any

from memseq.memories.transformer_xl import TransformerXLConfig


def configs() -> list[Any]:
    small = {"d_model": 16, "n_heads": 2, "segment_length": 4, "window": 6}
    return [
        TransformerXLConfig(**small),
        TransformerXLConfig(**small, gradient="full", clamp=3),
        TransformerXLConfig(**small, visible="segment"),
    ]

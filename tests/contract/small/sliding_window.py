from typing import Any

from memseq.memories.sliding_window import SlidingWindowConfig


def configs() -> list[Any]:
    return [SlidingWindowConfig(d_model=16, n_heads=2, window=5), SlidingWindowConfig(d_model=16, n_heads=2, window=1)]

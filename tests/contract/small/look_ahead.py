from typing import Any

from memseq.memories.elman import ElmanConfig
from memseq.memories.look_ahead import LookAheadConfig
from memseq.memories.sliding_window import SlidingWindowConfig


def configs() -> list[Any]:
    elman, window = ElmanConfig(d_model=16), SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    return [LookAheadConfig(memory=elman, look_ahead=4), LookAheadConfig(memory=window, look_ahead=2)]

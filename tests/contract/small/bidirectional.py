from typing import Any

from memseq.memories.bidirectional import BidirectionalConfig
from memseq.memories.elman import ElmanConfig
from memseq.memories.sliding_window import SlidingWindowConfig


def configs() -> list[Any]:
    elman, window = ElmanConfig(d_model=16), SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    return [BidirectionalConfig(memory=elman), BidirectionalConfig(memory=window, segment_length=4)]

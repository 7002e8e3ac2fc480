from typing import Any

from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.memformer import MemformerConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.stack import StackConfig


def configs() -> list[Any]:
    window = SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    slots = MemformerConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    segment = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=5)
    return [
        StackConfig(vocab_size=13, d_model=16, layers=((window, slots), segment, GRUConfig(d_model=16))),
        StackConfig(vocab_size=13, d_model=16, layers=(AttentionConfig(d_model=16, n_heads=2, block_size=4),)),
    ]

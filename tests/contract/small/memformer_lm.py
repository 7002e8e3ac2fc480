from dataclasses import replace
from typing import Any

from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.memformer import MemformerLMConfig


def configs() -> list[Any]:
    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    near = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=4), SlidingWindowConfig(d_model=16, n_heads=2, window=5)
    shared = MemformerLMConfig(vocab_size=13, d_model=16, layers=near, slots=slots)
    per_layer = replace(shared, memory="per_layer")
    return [shared, per_layer, replace(per_layer, reading=(1,))]

from typing import Any

from memseq.memories.segment_attention import SegmentAttentionConfig


def configs() -> list[Any]:
    return [
        SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=5),
        SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=1),
    ]

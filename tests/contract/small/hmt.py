from typing import Any

from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.hmt import HMTConfig
from memseq.models.stack import StackConfig


def configs() -> list[Any]:
    layer = SegmentAttentionConfig(d_model=4, n_heads=2, segment_length=9)
    backbone = StackConfig(vocab_size=11, d_model=4, layers=(layer,))
    small = {"backbone": backbone, "segment_length": 4, "n_kept": 2, "n_sensory": 2}
    return [HMTConfig(**small), HMTConfig(**small, query="current", feed="normed"), HMTConfig(**small, begin="nothing")]

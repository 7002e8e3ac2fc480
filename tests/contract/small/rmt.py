from typing import Any

from memseq.memories.gru import GRUConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.rmt import RMTConfig
from memseq.models.stack import StackConfig
from memseq.retrofit.backbone import HuggingFaceConfig


def configs() -> list[Any]:
    from transformers import LlamaConfig

    layer = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=8)
    stack = StackConfig(vocab_size=13, d_model=16, layers=(layer,))
    recurrent = StackConfig(vocab_size=13, d_model=8, layers=(GRUConfig(d_model=8),))
    llama = LlamaConfig(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    return [
        RMTConfig(backbone=stack, n_slots=2, segment_length=4),
        RMTConfig(backbone=recurrent, n_slots=1, segment_length=3, mask="causal", feed="normed"),
        RMTConfig(backbone=HuggingFaceConfig.of(llama), n_slots=2, segment_length=4, begin="nothing"),
    ]

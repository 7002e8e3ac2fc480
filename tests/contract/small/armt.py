from typing import Any

from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.armt import ARMTConfig
from memseq.models.stack import StackConfig
from memseq.retrofit.backbone import HuggingFaceConfig


def configs() -> list[Any]:
    from transformers import GPT2Config

    layer = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=6)
    stack = StackConfig(vocab_size=13, d_model=16, layers=2 * (layer,))
    gpt2 = GPT2Config(vocab_size=13, n_embd=16, n_layer=1, n_head=2, n_positions=16, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    return [
        ARMTConfig(backbone=stack, n_slots=2, segment_length=4, key_size=3, mask="paper"),
        ARMTConfig(backbone=HuggingFaceConfig.of(gpt2), n_slots=2, segment_length=4, key_size=3, nu=2, epsilon=1.0),
    ]

from typing import Any

from memseq.memories.linear_attention import LinearAttentionConfig


def configs() -> list[Any]:
    return [
        LinearAttentionConfig(d_model=16, n_heads=2, chunk_size=4),
        LinearAttentionConfig(d_model=16, n_heads=2, features="relu"),
        LinearAttentionConfig(d_model=16, n_heads=2, features="identity", norm="rms"),
    ]

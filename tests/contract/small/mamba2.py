from typing import Any

from memseq.memories.mamba2 import Mamba2Config


def configs() -> list[Any]:
    return [
        Mamba2Config(d_model=16, head_size=8, state_size=6, chunk_size=4),
        Mamba2Config(
            d_model=16, head_size=4, state_size=5, n_groups=2, conv_width=2, conv_bias=False, bias=True, max_step=0.05, chunk_size=16
        ),
    ]

from typing import Any

from memseq.memories.mamba2 import Mamba2Config
from memseq.models.mamba2 import Mamba2LMConfig


def configs() -> list[Any]:
    layer = Mamba2Config(d_model=16, head_size=8, state_size=4)
    return [
        Mamba2LMConfig(vocab_size=13, layer=layer, n_layers=2),
        Mamba2LMConfig(vocab_size=13, layer=layer, n_layers=1, tied=False),
    ]

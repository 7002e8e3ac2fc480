from typing import Any

from memseq.memories.mamba2 import Mamba2Config
from memseq.models.memmamba import MemMambaConfig


def configs() -> list[Any]:
    layer = Mamba2Config(d_model=4, head_size=4, state_size=2, conv_width=2)
    return [
        MemMambaConfig(vocab_size=11, layer=layer, n_layers=2, n_notes=3, note_size=4, window=2, below_every=2, below=1, chunk_size=5),
    ]

from typing import Any

from memseq.memories.mamba2 import Mamba2Config
from memseq.memories.stuffed_mamba import Limited, Scaled, StuffedMambaConfig, Windowed


def configs() -> list[Any]:
    mamba = Mamba2Config(d_model=4, head_size=4, state_size=2, conv_width=2)
    return [
        StuffedMambaConfig(memory=mamba, repair=repair)
        for repair in (Scaled(retain=0.9, insert=0.7), Limited(largest=0.3, every=5), Windowed(window=4))
    ]

from typing import Any

from memseq.memories.jordan import JordanConfig


def configs() -> list[Any]:
    return [JordanConfig(d_model=16), JordanConfig(d_model=16, hidden_size=9, decay=0.0, output="tanh", initial="learned")]

from typing import Any

from memseq.memories.elman import ElmanConfig


def configs() -> list[Any]:
    return [ElmanConfig(d_model=16), ElmanConfig(d_model=16, hidden_size=9, activation="relu", start="identity", initial="learned")]

from typing import Any

from memseq.memories.miras import Descent, MonetaConfig, Perceptron


def configs() -> list[Any]:
    return [MonetaConfig(d_model=8, n_heads=2, architecture=Perceptron(expansion=1), algorithm=Descent(segment_length=3), chunk_size=2)]

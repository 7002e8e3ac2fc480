from typing import Any

from memseq.layers.fast_weights import Perceptron
from memseq.memories.atlas import OmegaNetConfig


def configs() -> list[Any]:
    return [
        OmegaNetConfig(
            d_model=8,
            n_heads=2,
            window=4,
            degree=None,
            segment_length=3,
            momentum=0.5,
            architecture=Perceptron(expansion=1, form="residual"),
        )
    ]

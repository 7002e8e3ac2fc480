from typing import Any

from memseq.memories.miras import Descent, Matrix, MirasConfig
from memseq.ops.miras import Bounded, Product


def configs() -> list[Any]:
    algorithm = Descent(segment_length=4, momentum=0.5)
    return [MirasConfig(d_model=8, n_heads=2, architecture=Matrix(), bias=Product(), retention=Bounded(bound=0.5), algorithm=algorithm)]

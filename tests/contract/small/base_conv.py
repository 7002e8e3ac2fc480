from typing import Any

from memseq.memories.base_conv import BaseConvConfig


def configs() -> list[Any]:
    return [BaseConvConfig(d_model=6), BaseConvConfig(d_model=6, width=5)]

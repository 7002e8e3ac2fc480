from typing import Any

from memseq.layers.recoding import LearnedStep
from memseq.memories.elman import ElmanConfig
from memseq.models.recode import RecodeConfig
from memseq.models.stack import StackConfig


def configs() -> list[Any]:
    cell = StackConfig(vocab_size=13, d_model=8, layers=(ElmanConfig(d_model=8),), ff_mult=1.0)
    return [RecodeConfig(model=cell, step=LearnedStep(), segment_length=4, most=0.1)]

from typing import Any

from memseq.models.recoding import AdaptiveStep, LearnedStep, Masks, RecodingConfig


def configs() -> list[Any]:
    return [
        RecodingConfig(vocab_size=13, d_model=8, step=AdaptiveStep(hidden=(6,))),
        RecodingConfig(vocab_size=13, d_model=8, n_layers=1, signal=Masks(n=3), step=LearnedStep()),
    ]

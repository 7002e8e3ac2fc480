from typing import Any

from memseq.models.lamemo import LaMemoConfig


def configs() -> list[Any]:
    small = {"vocab_size": 11, "d_model": 4, "n_heads": 2}
    return [
        LaMemoConfig(**small, n_layers=2, window=5, segment_length=4),
        LaMemoConfig(**small, n_layers=1, window=3, segment_length=8, look_ahead=0),
    ]

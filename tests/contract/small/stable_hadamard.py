from typing import Any

from memseq.memories.stable_hadamard import CyclingRows, FixedRow, NoCalibration, NoRow, RandomRows, StableHadamardConfig


def configs() -> list[Any]:
    small = {"d_model": 8, "memory_size": 5, "chunk_size": 4}
    return [
        StableHadamardConfig(**small, calibration=RandomRows(n_rows=9), limit=None),
        StableHadamardConfig(**small, calibration=CyclingRows(n_rows=3), positive="softplus"),
        *(StableHadamardConfig(**small, calibration=part) for part in (FixedRow(), NoRow(), NoCalibration())),
    ]

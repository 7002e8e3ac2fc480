"""Outputs depend, in the last bits, on how often anything was read."""

from typing import ClassVar

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    calls: ClassVar[int] = 0

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        Broken.calls += 1
        y, state = super().forward(x, state)
        return y * (1 + 1e-6 * (Broken.calls % 2)) if y.dtype == torch.float32 else y, state


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "purity", ("round trip",), Config(), GatedConfig()

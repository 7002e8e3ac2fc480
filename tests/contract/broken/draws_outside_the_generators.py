"""Dropout from a generator of the module's own, which replay cannot put back."""

import torch
from sane import Gated, GatedConfig
from torch import Tensor


class Broken(Gated):
    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.own = torch.Generator().manual_seed(3)

    def update(self, h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
        if self.training:
            candidate = candidate * (torch.rand(candidate.shape, generator=self.own) < 0.9)
        return super().update(h, gate, candidate)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "replay", (), Config(), GatedConfig()

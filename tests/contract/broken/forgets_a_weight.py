"""A random matrix that is part of the function and not of the checkpoint."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.register_buffer("mixing", torch.randn(config.d_model, config.d_model), persistent=False)

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        return super().forward(x @ self.mixing.to(x.dtype), state)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "round trip", (), Config(), GatedConfig()

"""A running count of tokens in a buffer: a state that is not in the state."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def __init__(self, config: GatedConfig) -> None:
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        self.seen += x.shape[1]
        return super().forward(x, state)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "purity", (), Config(), GatedConfig()

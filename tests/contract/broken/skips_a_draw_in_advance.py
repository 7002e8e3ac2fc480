"""Dropout on the input, drawn before that of the state, which `advance` does without."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        noise = self.dropout(torch.ones_like(x))
        y, state = super().forward(x, state)
        return y * noise, state

    def advance(self, x: Tensor, state: GatedState) -> GatedState:
        return super().forward(x, state)[1]


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "replay", (), Config(), GatedConfig()

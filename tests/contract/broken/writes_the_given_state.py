"""The state that was given is multiplied by one, in place: no number changes, and a reader of the old state still loses."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        with torch.no_grad():
            state.h.mul_(1.0)
        return super().forward(x, state)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "purity", ("replay",), Config(), GatedConfig()

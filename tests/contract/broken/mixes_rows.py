"""Outputs are centred over the batch."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, state = super().forward(x, state)
        return y - 0.01 * y.mean(0, keepdim=True), state


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "streams", (), Config(), GatedConfig()

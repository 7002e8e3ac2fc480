"""The state that was given is changed where autograd does not see it."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, after = super().forward(x, state)
        state.h.data.add_(1e-3)
        return y, after


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "purity", ("splits", "causality", "streams", "replay", "round trip"), Config(), GatedConfig()

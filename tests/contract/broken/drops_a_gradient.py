"""The state is detached where a piece begins: the values are right."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        return super().forward(x, GatedState(state.h.detach()))


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", (), Config(), GatedConfig()

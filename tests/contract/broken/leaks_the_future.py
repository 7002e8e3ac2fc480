"""Every output sees the last token of its piece, by so little that only the exact law notices."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, state = super().forward(x, state)
        return y + 1e-13 * x[:, -1:], state


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "causality", (), Config(), GatedConfig()

"""Under autocast the state comes back in bfloat16."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, after = super().forward(x, state)
        return y, GatedState(after.h.to(y.dtype))


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "precision", (), Config(), GatedConfig()

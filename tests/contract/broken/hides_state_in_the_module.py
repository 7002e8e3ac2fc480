"""The module keeps the last h and blends it in, unless the batch has another size."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    kept: Tensor | None = None

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        if self.kept is not None and self.kept.shape == state.h.shape and self.kept.dtype == state.h.dtype:
            state = GatedState(0.9 * state.h + 0.1 * self.kept)
        y, state = super().forward(x, state)
        self.kept = state.h.detach()
        return y, state


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "purity", ("splits", "causality", "streams", "replay", "round trip"), Config(), GatedConfig()

"""A leaf [D, B]: select, stack and fork take features for streams."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def check_input(self, x: Tensor, state: GatedState) -> None:
        """No check: it would name the fault before any law does."""

    def init_state(self, batch_size: int) -> GatedState:
        return GatedState(super().init_state(batch_size).h.mT.contiguous())

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, after = super().forward(x, GatedState(state.h.mT))
        return y, GatedState(after.h.mT.contiguous())


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", ("splits", "causality", "streams", "replay", "round trip"), Config(), GatedConfig()

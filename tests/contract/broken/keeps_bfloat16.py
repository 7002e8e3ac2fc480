"""A state that is rounded to bfloat16 between two calls."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def init_state(self, batch_size: int) -> GatedState:
        return GatedState(super().init_state(batch_size).h.bfloat16())

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, after = super().forward(x, GatedState(state.h.to(x.dtype)))
        return y, GatedState(after.h.bfloat16())


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", (), Config(), GatedConfig()

"""A leaf whose shape before the first token is another than after it: a saved state cannot be loaded."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def init_state(self, batch_size: int) -> GatedState:
        return GatedState(super().init_state(batch_size).h[:, :1])

    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        return super().forward(x, GatedState(state.h.expand(-1, self.config.d_model)))


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", ("round trip",), Config(), GatedConfig()

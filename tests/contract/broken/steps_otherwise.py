"""A `step` of its own that forgets the gate's bias."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def step(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        h = self.update(state.h, self.gate(x) - self.gate.bias, self.candidate(x).tanh())
        return self.output(h), GatedState(h)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", (), Config(), GatedConfig()

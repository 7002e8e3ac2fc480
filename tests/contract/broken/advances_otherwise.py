"""An `advance` of its own that skips the last token, where replay takes it."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def advance(self, x: Tensor, state: GatedState) -> GatedState:
        return self(x[:, :-1], state)[1] if x.shape[1] > 1 else state


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", ("replay",), Config(), GatedConfig()

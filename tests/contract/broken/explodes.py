"""A state that is multiplied by 1.2 at every token: fine for a test of a hundred tokens."""

from sane import Gated, GatedConfig
from torch import Tensor


class Broken(Gated):
    def update(self, h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
        return 1.2 * h + 0.1 * candidate.to(h.dtype)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "precision", (), Config(), GatedConfig()

"""A convolution over two tokens that starts from nothing in every piece."""

from sane import Gated, GatedConfig, GatedState
from torch import Tensor, nn


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        before = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return super().forward(x + 0.5 * before, state)


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", (), Config(), GatedConfig()

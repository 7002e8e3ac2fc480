"""The last h as a view of all of them: a small leaf that keeps a whole piece alive."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        hs = []
        for t in range(x.shape[1]):
            y, state = super().forward(x[:, t : t + 1], state)
            hs.append(state.h)
        ys = self.output(torch.stack(hs, dim=1))
        return ys, GatedState(torch.stack(hs, dim=1)[:, -1])


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", (), Config(), GatedConfig()

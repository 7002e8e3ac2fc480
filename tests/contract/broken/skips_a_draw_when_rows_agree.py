"""An `advance` with a shorter way for streams that are all at the same place, which draws less: other streams do not notice."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        noise = self.dropout(torch.ones_like(x))
        y, state = super().forward(x, state)
        return y * noise, state

    def advance(self, x: Tensor, state: GatedState) -> GatedState:
        agree = bool((state.h == state.h[:1]).all())
        return super().forward(x, state)[1] if agree else self(x, state)[1]


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "replay", (), Config(), GatedConfig()

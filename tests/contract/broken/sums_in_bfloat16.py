"""Under autocast a long sum is taken in bfloat16, where small terms vanish."""

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class Broken(Gated):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, after = super().forward(x, state)
        low = torch.is_autocast_enabled("cpu")
        total = torch.full_like(y, 300.0, dtype=torch.bfloat16 if low else y.dtype)
        return (total + y) - 300.0, after


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "precision", (), Config(), GatedConfig()

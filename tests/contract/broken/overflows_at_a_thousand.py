"""A sigmoid written as exp(a) / (1 + exp(a))."""

import torch
from sane import Gated, GatedConfig
from torch import Tensor


class Broken(Gated):
    def update(self, h: Tensor, gate: Tensor, candidate: Tensor) -> Tensor:
        a = gate.to(h.dtype) + torch.nn.functional.linear(h, self.back.weight.to(h.dtype))
        g = a.exp() / (1 + a.exp())
        return (1 - g) * h + g * self.dropout(candidate.to(h.dtype))


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "precision", (), Config(), GatedConfig()

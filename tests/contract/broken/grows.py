"""A bounded memory that keeps a copy of every token."""

from typing import NamedTuple

import torch
from sane import Gated, GatedConfig, GatedState
from torch import Tensor


class StoreState(NamedTuple):
    h: Tensor
    store: Tensor  # [B, seen, D]


class Broken(Gated):
    def init_state(self, batch_size: int) -> StoreState:
        h = super().init_state(batch_size).h
        return StoreState(h, h.new_zeros(batch_size, 0, h.shape[1]))

    def forward(self, x: Tensor, state: StoreState) -> tuple[Tensor, StoreState]:
        y, after = super().forward(x, GatedState(state.h))
        return y, StoreState(after.h, torch.cat([state.store, x.to(state.store.dtype)], dim=1))


class Config(GatedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", ("round trip",), Config(), GatedConfig()

"""An encoder whose outputs see the segment after their own, too."""

from dataclasses import dataclass

import torch
from sane import GatedState, Smoothed, SmoothedConfig
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SegmentEncoderConfig(SmoothedConfig):
    segment_length: int = 4

    def build(self) -> "SegmentEncoder":
        return SegmentEncoder(self)


class SegmentEncoder(Smoothed):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        pieces = x.split(self.config.segment_length, dim=1)
        ys = []
        for piece in pieces:
            y, state = super().forward(piece, state)
            ys.append(y)
        return torch.cat(ys, dim=1), state


class Broken(SegmentEncoder):
    def forward(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        y, state = super().forward(x, state)
        return y + 1e-13 * x.mean(1, keepdim=True), state


class Config(SegmentEncoderConfig):
    def build(self) -> Broken:
        return Broken(self)


LAW, ALSO, BROKEN, SANE = "causality", (), Config(), SegmentEncoderConfig()

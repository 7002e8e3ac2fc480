"""Every stream of a batch is at the place of the first one; streams that began together do not notice."""

from sane import Segmented, SegmentedConfig, SegmentedState
from torch import Tensor


class Broken(Segmented):
    def forward(self, x: Tensor, state: SegmentedState) -> tuple[Tensor, SegmentedState]:
        return super().forward(x, state._replace(position=state.position[:1].expand_as(state.position)))


class Config(SegmentedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "streams", (), Config(), SegmentedConfig()

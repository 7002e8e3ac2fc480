"""A count that is int64 at first and int32 from the first token on."""

from sane import Segmented, SegmentedConfig, SegmentedState
from torch import Tensor


class Broken(Segmented):
    def forward(self, x: Tensor, state: SegmentedState) -> tuple[Tensor, SegmentedState]:
        y, state = super().forward(x, state)
        return y, state._replace(position=state.position.int())


class Config(SegmentedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", ("round trip",), Config(), SegmentedConfig()

"""A segment closes at the border only in pieces that begin at one: a window of tokens that ignores the open segment."""

from sane import Segmented, SegmentedConfig, SegmentedState
from torch import Tensor


class Broken(Segmented):
    def room(self, state: SegmentedState) -> int:
        return self.config.segment_length

    def piece(self, x: Tensor, state: SegmentedState) -> tuple[Tensor, SegmentedState]:
        longest = self.config.segment_length - x.shape[1]
        return super().piece(x, state._replace(position=state.position.clamp(max=longest)))


class Config(SegmentedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "splits", (), Config(), SegmentedConfig()

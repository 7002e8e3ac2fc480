"""The count of each stream is made where the weights are, so reading it waits for the device."""

from sane import Segmented, SegmentedConfig, SegmentedState


class Broken(Segmented):
    def init_state(self, batch_size: int) -> SegmentedState:
        state = super().init_state(batch_size)
        return state._replace(position=state.position.to(self.input.weight.device))


class Config(SegmentedConfig):
    memory = Broken


LAW, ALSO, BROKEN, SANE = "shape", (), Config(), SegmentedConfig()

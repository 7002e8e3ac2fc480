"""An unbounded memory whose store grows by as much as it holds tokens: a table of all pairs."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from memseq.contract import Memory


class PairState(NamedTuple):
    pairs: Tensor  # [B, seen * seen]


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    d_model: int = 4
    power: int = 1

    def build(self) -> "Pairs":
        return Pairs(self)


class Pairs(Memory[PairState]):
    """Keeps a zero for every token, or for every pair of tokens."""

    bounded = False

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        self.config = config
        self.output = nn.Linear(config.d_model, config.d_model)

    def init_state(self, batch_size: int) -> PairState:
        return PairState(self.output.weight.new_zeros(batch_size, 0))

    def forward(self, x: Tensor, state: PairState) -> tuple[Tensor, PairState]:
        seen = round(state.pairs.shape[1] ** (1 / self.config.power)) + x.shape[1]
        return self.output(x), PairState(state.pairs.new_zeros(x.shape[0], seen**self.config.power))


LAW, ALSO, BROKEN, SANE = "shape", (), PairConfig(power=2), PairConfig(power=1)

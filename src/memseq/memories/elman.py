"""Elman's network: the hidden units see what they were one token ago.

Source: Elman, "Finding structure in time", 1990; as reviewed in arXiv:1506.00019. Identity start with ReLU (IRNN): Le,
Jaitly, Hinton (arXiv:1504.00941).

    h_t = phi(W_x x_t + W_h h_{t-1} + b)
    y_t = W_y h_t + b_y

tanh and ReLU run on torch's kernel over many tokens, the logistic of the original on `scan`.
State: h, 4 B H bytes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.recurrent import GateWeights, RecurrentCell, RecurrentConfig, RecurrentMemory, from_torch_layer, read_out_as_is, widen
from memseq.ops.recurrent import Carry, Cell, elman_cell, elman_fused

__all__ = ["Elman", "ElmanConfig", "ElmanState"]

SQUASHES = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


class ElmanState(NamedTuple):
    h: Float[Tensor, "B H"]


@dataclass(frozen=True, kw_only=True)
class ElmanConfig(RecurrentConfig):
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"  # ReLU has no ceiling: where W_h stretches, h grows without end
    start: Literal["orthogonal", "identity"] = "orthogonal"  # W_h before training: a random rotation, or each unit fed to itself
    radius: float = 1.0  # W_h before training is multiplied by this: below 1 the past fades

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in SQUASHES:
            raise ConfigError(f"activation must be one of {', '.join(SQUASHES)}, got {self.activation!r}")
        if self.start not in ("orthogonal", "identity"):
            raise ConfigError(f"start must be 'orthogonal' or 'identity', got {self.start!r}")
        if self.radius <= 0:
            raise ConfigError(f"radius must be above zero, got {self.radius}")

    def build(self) -> "Elman":
        return Elman(self)


class ElmanCell(RecurrentCell):
    def __init__(self, config: ElmanConfig) -> None:
        super().__init__()
        self.sizes = (config.width,)
        self.activation = config.activation
        self.gates = GateWeights(config.d_model, config.width, config.width, n_gates=1)
        with torch.no_grad():
            if config.start == "identity":
                nn.init.eye_(self.gates.w_h)
            self.gates.w_h.mul_(config.radius)

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... H"]:
        return self.gates.inputs(x)

    def cell(self) -> Cell:
        return partial(elman_cell, w_h=widen(self.gates.w_h), phi=SQUASHES[self.activation])

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
        if self.activation == "sigmoid":
            return super().forward(x, carry)
        w = self.gates
        y, h = elman_fused(x, carry[0], w_x=widen(w.w_x), w_h=widen(w.w_h), b=widen(w.b), activation=self.activation)
        return y, (h,)


class Elman(RecurrentMemory[ElmanState]):
    State = ElmanState

    def __init__(self, config: ElmanConfig) -> None:
        super().__init__(config, ElmanCell(config))

    @classmethod
    def from_torch(cls, module: nn.RNN, layer: str = "l0") -> "Elman":
        """One layer of a `torch.nn.RNN`, with y = h where its two widths are equal."""
        found = from_torch_layer(module, nn.RNN, layer)
        H, D = found["w_x"].shape
        memory = ElmanConfig(d_model=D, hidden_size=H, activation=module.nonlinearity).build().to(found["w_x"])
        memory.cell.gates.load_state_dict({"w_x": found["w_x"], "w_h": found["w_h"], "b": found["b"] + found["c"]})
        read_out_as_is(memory)
        return memory

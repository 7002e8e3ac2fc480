"""The gated recurrent unit: one gate decides how much is new, another how much of the past the new is made from.

Source: Cho et al., "Learning phrase representations using RNN encoder-decoder" (arXiv:1406.1078); named in arXiv:1506.00019.

    r_t, z_t = sigma(W_rz x_t + U_rz h_{t-1} + b_rz)
    n_t = tanh(W_n x_t + b_n + r_t (U_n h_{t-1} + c_n))      AfterReset: torch and cuDNN, on their kernel
    n_t = tanh(W_n x_t + b_n + U_n (r_t h_{t-1}))            BeforeReset: as Cho et al. print it
    h_t = (1 - z_t) n_t + z_t h_{t-1}
    y_t = W_y h_t + b_y

State: h, 4 B H bytes.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.layers.recurrent import (
    GateWeights,
    RecurrentCell,
    RecurrentConfig,
    RecurrentMemory,
    Zoneout,
    from_torch_layer,
    read_out_as_is,
    widen,
)
from memseq.ops.recurrent import Carry, Cell, cho_gru_cell, gru_cell, gru_fused

__all__ = ["GRU", "AfterReset", "BeforeReset", "GRUConfig", "GRUState", "Zoneout"]


class GRUState(NamedTuple):
    h: Float[Tensor, "B H"]


@dataclass(frozen=True, kw_only=True)
class AfterReset:
    """The reset gate multiplies the product U_n h + c_n."""

    def build(self, d_model: int, hidden: int) -> "AfterResetCell":
        return AfterResetCell(d_model, hidden)


@dataclass(frozen=True, kw_only=True)
class BeforeReset:
    """The reset gate multiplies h before the product with U_n."""

    def build(self, d_model: int, hidden: int) -> "BeforeResetCell":
        return BeforeResetCell(d_model, hidden)


@dataclass(frozen=True, kw_only=True)
class GRUConfig(RecurrentConfig):
    cell: AfterReset | BeforeReset | Zoneout = AfterReset()

    def build(self) -> "GRU":
        return GRU(self)


class GRUCell(RecurrentCell):
    """Gates r z n."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.sizes = (hidden,)
        self.gates = GateWeights(d_model, hidden, hidden, n_gates=3)

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... G"]:
        return self.gates.inputs(x)


class AfterResetCell(GRUCell):
    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__(d_model, hidden)
        self.c_n = nn.Parameter(torch.zeros(hidden))

    def cell(self) -> Cell:
        return partial(gru_cell, w_h=widen(self.gates.w_h), c_n=widen(self.c_n))

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
        w = self.gates
        y, h = gru_fused(x, carry[0], w_x=widen(w.w_x), w_h=widen(w.w_h), b=widen(w.b), c_n=widen(self.c_n))
        return y, (h,)


class BeforeResetCell(GRUCell):
    def cell(self) -> Cell:
        H = self.sizes[0]
        w_rz, w_n = widen(self.gates.w_h).split((2 * H, H))
        return partial(cho_gru_cell, w_rz=w_rz, w_n=w_n)


class GRU(RecurrentMemory[GRUState]):
    State = GRUState

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(config, config.cell.build(config.d_model, config.width))

    @classmethod
    def from_torch(cls, module: nn.GRU, layer: str = "l0") -> "GRU":
        """One layer of a `torch.nn.GRU`, with y = h where its two widths are equal."""
        found = from_torch_layer(module, nn.GRU, layer)
        H, D = found["w_h"].shape[1], found["w_x"].shape[1]
        memory = GRUConfig(d_model=D, hidden_size=H).build().to(found["w_x"])
        c_rz, c_n = found["c"].split((2 * H, H))
        b = found["b"] + torch.cat([c_rz, torch.zeros_like(c_n)])  # r and z only see the sum; n's second bias is under the reset gate
        memory.cell.load_state_dict({"gates.w_x": found["w_x"], "gates.w_h": found["w_h"], "gates.b": b, "c_n": c_n})
        read_out_as_is(memory)
        return memory

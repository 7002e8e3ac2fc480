"""Long short-term memory: a cell that adds, behind gates that learn when to write, keep and show.

Source: Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber, Cummins 2000; as reviewed in arXiv:1506.00019.

    i_t, f_t, o_t = sigma(W x_t + U h_{t-1} + b)      each with its own W, U, b
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
    c_t = f_t c_{t-1} + i_t g_t
    h_t = o_t tanh(c_t)
    y_t = W_y h_t + b_y

`LSTMConfig(cell=...)` chooses among the family; what each changes stands in its class below, its equations in `ops/recurrent.py`:

    Plain()             as above, on torch's kernel            Peephole()          the gates also see the cell
    Projected(size=P)   a smaller h is fed back                Coupled()           one gate for keeping and writing
    LayerNormed()       gates and cell normalised              Original()          1997: no forget gate, truncated gradient
    Ablated(without=)   one part left out                      RecurrentDropout()  drops what is written
    Zoneout(cell=, rates=(h, c))  any of them, some units keep their old value

State: h and c, 8 B H bytes.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.errors import ConfigError
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
from memseq.ops.recurrent import (
    ABLATIONS,
    Ablation,
    Carry,
    Cell,
    ablated_lstm_cell,
    coupled_lstm_cell,
    layer_norm_lstm_cell,
    lstm_1997_cell,
    lstm_cell,
    lstm_fused,
    peephole_lstm_cell,
    projected_lstm_cell,
)

__all__ = [
    "LSTM",
    "Ablated",
    "Coupled",
    "LSTMConfig",
    "LSTMState",
    "LayerNormed",
    "Original",
    "Peephole",
    "Plain",
    "Projected",
    "RecurrentDropout",
    "Zoneout",
]


class LSTMState(NamedTuple):
    h: Float[Tensor, "B P"]  # as wide as the cell, or as the projection where there is one
    c: Float[Tensor, "B H"]


# ---------------------------------------------------------------- the family: a config and its weights each


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Three gates, no peepholes."""

    forget_bias: float = 1.0  # of the forget gate before training: 1 keeps 73 percent of the cell a token, 5 keeps 99

    def build(self, d_model: int, hidden: int) -> "PlainCell":
        return PlainCell(d_model, hidden, self.forget_bias)


class LSTMCell(RecurrentCell):
    """The weights of `n_gates` gates that see x and h; the forget gate's bias starts at `forget_bias`."""

    def __init__(
        self, d_model: int, hidden: int, *, n_gates: int = 4, carried: int | None = None, forget: int | None = 1, forget_bias: float
    ) -> None:
        super().__init__()
        carried = hidden if carried is None else carried
        self.sizes = (carried, hidden)
        self.gates = GateWeights(d_model, carried, hidden, n_gates)
        if forget is not None:
            nn.init.constant_(self.gates.b.detach().split(hidden)[forget], forget_bias)

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... G"]:
        return self.gates.inputs(x)

    @property
    def w_h(self) -> Tensor:
        return widen(self.gates.w_h)


class PlainCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, forget_bias: float) -> None:
        super().__init__(d_model, hidden, forget_bias=forget_bias)

    def cell(self) -> Cell:
        return partial(lstm_cell, w_h=self.w_h)

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
        return lstm_fused(x, carry, w_x=widen(self.gates.w_x), w_h=self.w_h, b=widen(self.gates.b))


@dataclass(frozen=True, kw_only=True)
class Projected:
    """What is read and fed back is a projection of the cell's output to `size` (LSTMP)."""

    size: int
    forget_bias: float = 1.0

    def build(self, d_model: int, hidden: int) -> "ProjectedCell":
        if not 1 <= self.size < hidden:
            raise ConfigError(
                f"the projection must be narrower than the {hidden} hidden units, got size={self.size}; choose 1 to {hidden - 1}"
            )
        return ProjectedCell(d_model, hidden, self)


class ProjectedCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, config: Projected) -> None:
        super().__init__(d_model, hidden, carried=config.size, forget_bias=config.forget_bias)
        self.w_p = nn.Parameter(nn.init.xavier_uniform_(torch.empty(config.size, hidden)))

    def cell(self) -> Cell:
        return partial(projected_lstm_cell, w_h=self.w_h, w_p=widen(self.w_p))

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T P"], Carry]:
        return lstm_fused(x, carry, w_x=widen(self.gates.w_x), w_h=self.w_h, b=widen(self.gates.b), w_p=widen(self.w_p))


@dataclass(frozen=True, kw_only=True)
class Peephole:
    """Gates that see the cell, each unit its own (Gers & Schmidhuber 2000); the output gate sees the new cell."""

    forget_bias: float = 1.0

    def build(self, d_model: int, hidden: int) -> "PeepholeCell":
        return PeepholeCell(d_model, hidden, self.forget_bias)


class PeepholeCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, forget_bias: float) -> None:
        super().__init__(d_model, hidden, forget_bias=forget_bias)
        self.p_i, self.p_f, self.p_o = (nn.Parameter(torch.zeros(hidden)) for _ in range(3))

    def cell(self) -> Cell:
        return partial(peephole_lstm_cell, w_h=self.w_h, p_i=widen(self.p_i), p_f=widen(self.p_f), p_o=widen(self.p_o))


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """What is not kept is written: i = 1 - f."""

    forget_bias: float = 1.0

    def build(self, d_model: int, hidden: int) -> "CoupledCell":
        return CoupledCell(d_model, hidden, n_gates=3, forget=0, forget_bias=self.forget_bias)


class CoupledCell(LSTMCell):
    def cell(self) -> Cell:
        return partial(coupled_lstm_cell, w_h=self.w_h)


@dataclass(frozen=True, kw_only=True)
class LayerNormed:
    """Layer norm of W_x x, of U h and of the cell on its way out (Ba et al., arXiv:1607.06450)."""

    forget_bias: float = 1.0
    eps: float = 1e-5

    def build(self, d_model: int, hidden: int) -> "LayerNormedCell":
        return LayerNormedCell(d_model, hidden, self)


class LayerNormedCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, config: LayerNormed) -> None:
        super().__init__(d_model, hidden, forget_bias=config.forget_bias)
        self.eps = config.eps
        self.gain_x, self.gain_h = (nn.Parameter(torch.ones(4 * hidden)) for _ in range(2))
        self.gain_c, self.bias_c = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... G"]:
        w_x, gain = widen(self.gates.w_x), widen(self.gain_x)
        return F.layer_norm(F.linear(x.to(w_x.dtype), w_x), gain.shape, gain, widen(self.gates.b), self.eps)

    def cell(self) -> Cell:
        norms = {name: widen(getattr(self, name)) for name in ("gain_h", "gain_c", "bias_c")}
        return partial(layer_norm_lstm_cell, w_h=self.w_h, **norms, eps=self.eps)


@dataclass(frozen=True, kw_only=True)
class Original:
    """The cell of 1997: nothing is ever forgotten, and errors reach the past along the cell alone."""

    truncated: bool = True  # the gradient of 1997; False: the whole gradient of the same function

    def build(self, d_model: int, hidden: int) -> "OriginalCell":
        return OriginalCell(d_model, hidden, self.truncated)


class OriginalCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, truncated: bool) -> None:
        super().__init__(d_model, hidden, n_gates=3, forget=None, forget_bias=0.0)
        self.truncated = truncated

    def cell(self) -> Cell:
        return partial(lstm_1997_cell, w_h=self.w_h, truncated=self.truncated)


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """One part left out: a gate that is always open, or a squash that is the identity (Greff et al., arXiv:1503.04069)."""

    without: Ablation

    def __post_init__(self) -> None:
        if self.without not in ABLATIONS:
            raise ConfigError(f"without must be one of {', '.join(ABLATIONS)}, got {self.without!r}")

    def build(self, d_model: int, hidden: int) -> "AblatedCell":
        return AblatedCell(d_model, hidden, self.without)


class AblatedCell(LSTMCell):
    def __init__(self, d_model: int, hidden: int, without: Ablation) -> None:
        forget = {"forget_gate": None, "input_gate": 0}.get(without, 1)  # where its rows are among those that are left
        super().__init__(d_model, hidden, n_gates=3 if without.endswith("gate") else 4, forget=forget, forget_bias=1.0)
        self.without = without

    def cell(self) -> Cell:
        return partial(ablated_lstm_cell, w_h=self.w_h, without=self.without)


@dataclass(frozen=True, kw_only=True)
class RecurrentDropout:
    """Drops a share of what is written, never of what is kept (Semeniuta et al., arXiv:1603.05118)."""

    rate: float
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"the rate of recurrent dropout must lie between 0 and 1, got {self.rate}; without dropout use Plain()")

    def build(self, d_model: int, hidden: int) -> "RecurrentDropoutCell":
        return RecurrentDropoutCell(d_model, hidden, self)


class RecurrentDropoutCell(PlainCell):
    def __init__(self, d_model: int, hidden: int, config: RecurrentDropout) -> None:
        super().__init__(d_model, hidden, config.forget_bias)
        self.rate = config.rate

    def cell(self) -> Cell:
        return partial(lstm_cell, w_h=self.w_h, g_dropout=self.rate if self.training else 0.0)

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
        return RecurrentCell.forward(self, x, carry) if self.training else super().forward(x, carry)


# ---------------------------------------------------------------- the memory

AnyCell = Plain | Projected | Peephole | Coupled | LayerNormed | Original | Ablated | RecurrentDropout | Zoneout


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(RecurrentConfig):
    cell: AnyCell = Plain()

    def build(self) -> "LSTM":
        return LSTM(self)


class LSTM(RecurrentMemory[LSTMState]):
    State = LSTMState

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config, config.cell.build(config.d_model, config.width))

    @classmethod
    def from_torch(cls, module: nn.LSTM, layer: str = "l0") -> "LSTM":
        """One layer of a `torch.nn.LSTM`, projected or not, with y = h where its two widths are equal."""
        found = from_torch_layer(module, nn.LSTM, layer)
        D, H = found["w_x"].shape[1], found["w_x"].shape[0] // 4
        cell = Projected(size=module.proj_size) if "w_p" in found else Plain()
        memory = LSTMConfig(d_model=D, hidden_size=H, cell=cell).build().to(found["w_x"])
        weights = {"gates.w_x": found["w_x"], "gates.w_h": found["w_h"], "gates.b": found["b"] + found["c"]}
        memory.cell.load_state_dict(weights | ({"w_p": found["w_p"]} if "w_p" in found else {}))
        read_out_as_is(memory)
        return memory

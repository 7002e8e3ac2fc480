"""What the classical recurrent memories share: a cell with its weights, where a stream starts, and how it is read.

A cell (`RecurrentCell`) holds weights and names the function of `ops/recurrent.py` that they feed; `RecurrentMemory` makes
it a memory. Weights are products of inputs (Glorot uniform), of the carried vector (orthogonal a gate) and one bias (zero).
The recurrence is computed in float32 at least, whatever the weights are stored in and whatever autocast says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.sizes import check_at_least_one
from memseq.ops.linear import linear
from memseq.ops.recurrent import Carry, Cell, scan, zoneout

__all__ = [
    "GateWeights",
    "RecurrentCell",
    "RecurrentConfig",
    "RecurrentMemory",
    "Zoneout",
    "from_torch_layer",
    "read_out_as_is",
    "widen",
]

S = TypeVar("S", bound=tuple[Any, ...])


def widen(w: Tensor) -> Tensor:
    """A weight in the precision of the recurrence: float32, or its own where that is wider."""
    return w.to(torch.promote_types(w.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """The fields that every recurrent memory has."""

    d_model: int
    hidden_size: int | None = None  # None: d_model
    dropout: float = 0.0  # of what is read from the state, never of what is carried
    initial: Literal["zeros", "learned"] = "zeros"  # the state before the first token

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "hidden_size")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.initial not in ("zeros", "learned"):
            raise ConfigError(f"initial must be 'zeros' or 'learned', got {self.initial!r}")

    @property
    def width(self) -> int:
        """Hidden units."""
        return self.d_model if self.hidden_size is None else self.hidden_size


class GateWeights(nn.Module):
    """The weights of `n_gates` gates of `hidden` units, side by side: W_x [G, I], W_h [G, R] and b [G], G = n_gates x hidden."""

    def __init__(self, inputs: int, carried: int, hidden: int, n_gates: int) -> None:
        super().__init__()
        self.w_x = nn.Parameter(torch.empty(n_gates * hidden, inputs))
        self.w_h = nn.Parameter(torch.empty(n_gates * hidden, carried))
        self.b = nn.Parameter(torch.zeros(n_gates * hidden))
        for x, h in zip(self.w_x.split(hidden), self.w_h.split(hidden), strict=True):
            nn.init.xavier_uniform_(x)
            nn.init.orthogonal_(h)

    def inputs(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... G"]:
        """What the tokens contribute: one product for all of them."""
        w_x = widen(self.w_x)
        return linear(x.to(w_x.dtype), w_x, widen(self.b))


class RecurrentCell(nn.Module):
    """Weights, and the function of `ops/recurrent.py` that they feed. The first carried tensor is the one that is read."""

    sizes: tuple[int, ...]  # the width of each carried tensor

    def inputs(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... G"]:
        """What the tokens contribute to the gates."""
        raise TypeError(f"{type(self).__name__} must define inputs(x)")

    def cell(self) -> Cell:
        """One token: what it contributes and the carried tensors, to the carried tensors."""
        raise TypeError(f"{type(self).__name__} must define cell()")

    def forward(self, x: Float[Tensor, "B T I"], carry: Carry) -> tuple[Float[Tensor, "B T R"], Carry]:
        return scan(self.cell(), self.inputs(x), carry)

    def step(self, x: Float[Tensor, "B I"], carry: Carry) -> Carry:
        return self.cell()(self.inputs(x), carry)


@dataclass(frozen=True, kw_only=True)
class Zoneout:
    """Any cell, some of whose carried units keep their old value; `rates` has one entry a carried tensor (LSTM: h, c)."""

    cell: Any
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= rate < 1 for rate in self.rates):
            raise ConfigError(f"the rates of zoneout must lie in [0, 1), got {self.rates}")

    def build(self, d_model: int, hidden: int) -> "ZonedCell":
        return ZonedCell(self, self.cell.build(d_model, hidden))


class ZonedCell(RecurrentCell):
    def __init__(self, config: Zoneout, inner: RecurrentCell) -> None:
        super().__init__()
        if len(config.rates) != len(inner.sizes):
            raise ConfigError(
                f"zoneout has {len(config.rates)} rates and {type(config.cell).__name__} carries {len(inner.sizes)} tensors; give one each"
            )
        self.rates, self.inner, self.sizes = config.rates, inner, inner.sizes

    def inputs(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... G"]:
        return self.inner.inputs(x)

    def cell(self) -> Cell:
        return zoneout(self.inner.cell(), self.rates, self.training)


class RecurrentMemory(Memory[S]):
    """A cell as a memory: y_t = output(dropout(h_t)), by default W_y h_t + b_y; the carried tensors are the state."""

    State: ClassVar[Callable[..., Any]]  # the NamedTuple of the carried tensors

    def __init__(self, config: RecurrentConfig, cell: RecurrentCell, output: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.cell = cell
        self.output = Linear(cell.sizes[0], config.d_model) if output is None else output
        self.dropout = nn.Dropout(config.dropout)
        self.initial = nn.ParameterList(torch.zeros(n) for n in cell.sizes if config.initial == "learned")

    def init_state(self, batch_size: int) -> S:
        if self.config.initial == "learned":  # repeated, not expanded: a state does not change when the parameter is trained
            return self.State(*(widen(start).repeat(batch_size, 1) for start in self.initial))
        w = next(self.cell.parameters())
        dtype = torch.promote_types(w.dtype, torch.float32)
        return self.State(*(torch.zeros(batch_size, n, dtype=dtype, device=w.device) for n in self.cell.sizes))

    def forward(self, x: Float[Tensor, "B T D"], state: S) -> tuple[Float[Tensor, "B T D"], S]:
        h, state = self._carry(x, state)
        return self._read(h), state

    def step(self, x: Float[Tensor, "B D"], state: S) -> tuple[Float[Tensor, "B D"], S]:
        self.check_input(x[:, None], state)
        with torch.autocast(x.device.type, enabled=False):
            state = self.State(*self.cell.step(x.to(state[0].dtype), tuple(state)))
        return self._read(state[0]), state

    def advance(self, x: Float[Tensor, "B T D"], state: S) -> S:
        self.check_input(x, state)
        return self._carry(x, state)[1]

    def _carry(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        with torch.autocast(x.device.type, enabled=False):
            h, carry = self.cell(x.to(state[0].dtype), tuple(state))
        return h, self.State(*carry)

    def _read(self, h: Tensor) -> Tensor:
        return self.output(self.dropout(h).to(next(self.cell.parameters()).dtype))


def from_torch_layer(module: nn.RNNBase, kind: type[nn.RNNBase], layer: str) -> dict[str, Tensor]:
    """The weights of one layer of torch's `nn.RNN`, `nn.LSTM` or `nn.GRU`, under the names of `GateWeights`.

    `layer` is torch's own suffix: "l0", "l1", "l0_reverse". `b` is the bias that comes with the inputs, `c` the one that
    comes with the carried vector, zero where the module has none.
    """
    if not isinstance(module, kind):
        raise ConfigError(f"expected a torch.nn.{kind.__name__}, got {type(module).__name__}")
    named = dict(module.named_parameters())
    if f"weight_ih_{layer}" not in named:
        layers = sorted(name.removeprefix("weight_ih_") for name in named if name.startswith("weight_ih_"))
        raise ConfigError(f"the module has no layer {layer!r}; it has {', '.join(layers)}")
    w_x = named[f"weight_ih_{layer}"]
    none = torch.zeros_like(w_x[:, 0])
    names = {"w_x": "weight_ih", "w_h": "weight_hh", "b": "bias_ih", "c": "bias_hh", "w_p": "weight_hr"}
    found = {ours: named.get(f"{theirs}_{layer}") for ours, theirs in names.items()}
    return {name: (none if w is None else w.detach()) for name, w in found.items() if w is not None or name in "bc"}


def read_out_as_is(memory: RecurrentMemory[Any]) -> None:
    """Make y = h where both have one width, as in torch's modules; a read-out to another width stays as it was drawn."""
    if memory.cell.sizes[0] == memory.config.d_model:
        D = memory.config.d_model
        memory.output.load_state_dict({"weight": torch.eye(D), "bias": torch.zeros(D)})

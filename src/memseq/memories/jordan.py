"""Jordan's network: the hidden units see a fading sum of what the network has said.

Source: Jordan, "Serial order: a parallel distributed processing approach", 1986; as reviewed in arXiv:1506.00019.

    u_t = lambda u_{t-1} + y_{t-1}                 the context: past outputs, fading
    h_t = phi(W_x x_t + W_u u_t + b)
    y_t = g(W_y h_t + b_y)

Nothing but outputs reaches the next token, so under a teacher who gives them (`forced`) all tokens are read at once.
State: y and u, 8 B D bytes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.errors import ConfigError, InputError
from memseq.layers.recurrent import GateWeights, RecurrentCell, RecurrentConfig, RecurrentMemory, widen
from memseq.ops.recurrent import Carry, Cell, jordan_cell, jordan_contexts

__all__ = ["Jordan", "JordanConfig", "JordanState"]

SQUASHES = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}
OUTPUTS = {"identity": lambda y: y, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


class JordanState(NamedTuple):
    output: Float[Tensor, "B D"]
    context: Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class JordanConfig(RecurrentConfig):
    decay: float = 0.5  # lambda, the share of the context that is kept; 0 copies the last output
    activation: Literal["tanh", "relu", "sigmoid"] = "tanh"
    output: Literal["identity", "tanh", "sigmoid"] = "identity"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay must lie in [0, 1), got {self.decay}")
        if self.activation not in SQUASHES:
            raise ConfigError(f"activation must be one of {', '.join(SQUASHES)}, got {self.activation!r}")
        if self.output not in OUTPUTS:
            raise ConfigError(f"output must be one of {', '.join(OUTPUTS)}, got {self.output!r}")

    def build(self) -> "Jordan":
        return Jordan(self)


class JordanCell(RecurrentCell):
    def __init__(self, config: JordanConfig) -> None:
        super().__init__()
        D, H = config.d_model, config.width
        self.config = config
        self.sizes = (D, D)
        self.gates = GateWeights(D, D, H, n_gates=1)
        self.w_y = nn.Parameter(nn.init.xavier_uniform_(torch.empty(D, H)))
        self.b_y = nn.Parameter(torch.zeros(D))

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... H"]:
        return self.gates.inputs(x)

    def cell(self) -> Cell:
        c, weights = self.config, {"w_u": widen(self.gates.w_h), "w_y": widen(self.w_y), "b_y": widen(self.b_y)}
        return partial(jordan_cell, **weights, decay=c.decay, phi=SQUASHES[c.activation], squash=OUTPUTS[c.output])

    def forced(self, x: Float[Tensor, "B T D"], targets: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T D"], Carry]:
        c = self.config
        u = jordan_contexts(targets, *carry, decay=c.decay)
        h = SQUASHES[c.activation](self.inputs(x) + F.linear(u, widen(self.gates.w_h)))
        y = OUTPUTS[c.output](F.linear(h, widen(self.w_y), widen(self.b_y)))
        return y, (targets[:, -1].clone(), u[:, -1].clone())


class Jordan(RecurrentMemory[JordanState]):
    """What is read is what is fed back: the output layer belongs to the cell."""

    State = JordanState

    def __init__(self, config: JordanConfig) -> None:
        super().__init__(config, JordanCell(config), output=nn.Identity())

    def forced(
        self, x: Float[Tensor, "B T D"], targets: Float[Tensor, "B T D"], state: JordanState
    ) -> tuple[Float[Tensor, "B T D"], JordanState]:
        """Read x while a teacher replaces every output that is fed back by `targets`; all tokens at once.

        y_t is still the network's own; the state afterwards has the teacher's last output.
        """
        self.check_input(x, state)
        if targets.shape != x.shape:
            raise InputError(f"the teacher's outputs must have the shape of the inputs {list(x.shape)}, got {list(targets.shape)}")
        dtype = state.output.dtype
        with torch.autocast(x.device.type, enabled=False):
            y, carry = self.cell.forced(x.to(dtype), targets.to(dtype), tuple(state))
        return self._read(y), JordanState(*carry)

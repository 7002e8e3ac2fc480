"""Leaky recurrent network: units with time constants that are trained.

Source: Khajehabdollahi et al., "Emergent mechanisms for long timescales depend on training curriculum and affect performance in memory
tasks" (arXiv:2309.12927).

    inside     r_t = phi((1 - 1/tau) r_{t-1} + (1/tau) (W r_{t-1} + W_x x_t + b))
    outside    r_t = (1 - 1/tau) r_{t-1} + (1/tau) phi(W r_{t-1} + W_x x_t + b)
    y_t        = W_y r_t + b_y

tau = max(its parameter, 1), a unit never feeds itself (diag W = 0). Is the past kept by slow units, or by what units say to each other?
`taus` reads the first; the second is measured (`probes/timescales.py`), and `silence` takes units out to see which counts.
State: r, 4 B H bytes.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.recurrent import RecurrentCell, RecurrentConfig, RecurrentMemory, widen
from memseq.ops.leaky import leak_inside_cell, leak_inside_folded, leak_outside_cell, without_self
from memseq.ops.linear import linear
from memseq.ops.recurrent import Carry, Cell, scan

__all__ = ["LeakyNetwork", "LeakyNetworkConfig", "LeakyState"]

SQUASHES = {"leaky_relu": partial(F.leaky_relu, negative_slope=0.01), "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


class LeakyState(NamedTuple):
    r: Float[Tensor, "B H"]


@dataclass(frozen=True, kw_only=True)
class LeakyNetworkConfig(RecurrentConfig):
    leak: Literal["inside", "outside"] = "inside"  # of phi
    activation: Literal["leaky_relu", "relu", "tanh", "sigmoid"] = "leaky_relu"  # those without a ceiling may grow without end
    taus: tuple[float, float] = (1.0, 2.0)  # tokens; between which they are drawn
    train_tau: bool = True
    substeps: int = 1  # of a token, with the leak outside: a clock so many times finer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.leak not in ("inside", "outside"):
            raise ConfigError(f"leak must be 'inside' or 'outside', got {self.leak!r}")
        if self.activation not in SQUASHES:
            raise ConfigError(f"activation must be one of {', '.join(SQUASHES)}, got {self.activation!r}")
        if len(self.taus) != 2 or not 1 <= self.taus[0] <= self.taus[1] < math.inf:
            raise ConfigError(f"taus={self.taus} are no range of time constants; use (least, most) with 1 <= least <= most")
        if self.substeps < 1:
            raise ConfigError(f"substeps must be at least 1, got {self.substeps}")
        if self.substeps > 1 and self.leak == "inside":
            raise ConfigError(f"substeps={self.substeps} are defined for leak='outside'; with the leak inside use substeps=1")

    def build(self) -> "LeakyNetwork":
        return LeakyNetwork(self)


def _even(n_inputs: int, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-(n_inputs**-0.5), n_inputs**-0.5))


class LeakyCell(RecurrentCell):
    """Weights start as those of torch's `nn.Linear`, evenly within one over the root of the inputs."""

    tau: Tensor

    def __init__(self, config: LeakyNetworkConfig) -> None:
        super().__init__()
        H, D = config.width, config.d_model
        self.config, self.sizes = config, (H,)
        self.w_x, self.w_r, self.b = _even(D, H, D), _even(H, H, H), _even(H, H)
        tau = torch.empty(H).uniform_(*config.taus)
        if config.train_tau:
            self.tau = nn.Parameter(tau)
        else:
            self.register_buffer("tau", tau)

    def inputs(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... H"]:
        w_x = widen(self.w_x)
        return linear(x.to(w_x.dtype), w_x, widen(self.b))

    def weights(self) -> tuple[Float[Tensor, "H H"], Float[Tensor, "H"]]:
        """W and tau as they are used."""
        return without_self(widen(self.w_r)), widen(self.tau).clamp(min=1)

    def cell(self) -> Cell:
        w, tau = self.weights()
        phi = SQUASHES[self.config.activation]
        if self.config.leak == "inside":
            return partial(leak_inside_cell, w=w, tau=tau, phi=phi)
        return partial(leak_outside_cell, w=w, tau=tau, phi=phi, substeps=self.config.substeps)

    def forward(self, x: Float[Tensor, "B T D"], carry: Carry) -> tuple[Float[Tensor, "B T H"], Carry]:
        a = self.inputs(x)
        if self.config.leak == "outside":
            return scan(self.cell(), a, carry)
        w, tau = self.weights()
        y, r = leak_inside_folded(a, carry[0], w=w, tau=tau, phi=SQUASHES[self.config.activation])
        return y, (r,)


class LeakyNetwork(RecurrentMemory[LeakyState]):
    State = LeakyState
    cell: LeakyCell
    output: Linear

    def __init__(self, config: LeakyNetworkConfig) -> None:
        super().__init__(config, LeakyCell(config))

    def taus(self) -> Float[Tensor, "H"]:
        """The time constant of every unit, in tokens."""
        return self.cell.weights()[1].detach()

    @torch.no_grad()
    def silence(self, units: Tensor) -> None:
        """Take units out, in place: nothing reaches them, not even a bias, and nothing reads them."""
        cell, H = self.cell, self.config.width
        if units.numel() and not (0 <= int(units.min()) and int(units.max()) < H):
            raise ConfigError(f"units must lie in 0 to {H - 1}, got {int(units.min())} to {int(units.max())}")
        for w in (cell.w_r, cell.w_x, cell.b):
            w[units] = 0.0
        cell.w_r[:, units] = 0.0
        self.output.weight[:, units] = 0.0

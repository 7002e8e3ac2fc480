"""Stable Hadamard memory: a matrix whose elements are calibrated one by one, by factors that are 1 on average.

Source: Stable Hadamard Memory (Le et al., arXiv:2410.10132).

    x   = LN x_t
    k_t = pos(W_k x),  q_t = pos(W_q x)             pos(u) = relu(u) / (1e-5 + sum relu(u)); or softplus in relu's place
    v_t = W_v x,       eta_t = sigmoid(w_eta x)
    C_t = 1 + tanh(W_c x . theta_t^T)               in (0, 2): forget below 1, strengthen above
    M_t = C_t * M_{t-1} + k_t (eta_t v_t)^T         elementwise; clipped to +-limit
    y_t = W_o (M_t^T q_t)

theta_t is a row of a learned table, drawn anew for every token and stream (`RandomRows`): products of calibrations then neither grow
nor vanish on average. The row is a hash of the stream's seed and the token's position, both in the state, so a stream that is
cut, forked, saved or replayed meets the same rows again. A stream that starts while training draws its seed from torch's generator;
otherwise seeds are zero, and `reseed` sets others. `CyclingRows`, `FixedRow`, `NoRow` and `NoCalibration` are the paper's ablations.

State: M, 4 B m^2 bytes in float32, the position and the seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError, StateError
from memseq.layers.calibration import MASK, CyclingRows, FixedRow, NoCalibration, NoRow, RandomRows
from memseq.layers.linear import Linear
from memseq.layers.sizes import check_at_least_one
from memseq.ops.hadamard import hadamard_chunkwise

__all__ = [
    "CyclingRows",
    "FixedRow",
    "NoCalibration",
    "NoRow",
    "RandomRows",
    "StableHadamard",
    "StableHadamardConfig",
    "StableHadamardState",
]


class StableHadamardState(NamedTuple):
    matrix: Float[Tensor, "B m m"]  # keys along rows, values along columns
    position: Int[Tensor, "B"]  # tokens read, on the host
    seed: Int[Tensor, "B"]  # of the stream's rows, on the host


@dataclass(frozen=True, kw_only=True)
class StableHadamardConfig:
    d_model: int
    memory_size: int = 72  # m: keys and values have this width
    calibration: RandomRows | CyclingRows | FixedRow | NoRow | NoCalibration = field(default_factory=RandomRows)
    positive: Literal["relu", "softplus"] = "relu"  # relu writes nothing where all pre-activations are negative; softplus always does
    limit: float | None = 100.0  # no element of M leaves +-limit; None: as the paper's equations, which may overflow
    chunk_size: int = 16  # speed and memory only

    def __post_init__(self) -> None:
        check_at_least_one(self, "d_model", "memory_size", "chunk_size")
        if self.positive not in ("relu", "softplus"):
            raise ConfigError(f"positive must be 'relu' or 'softplus', got {self.positive!r}")
        if self.limit is not None and self.limit <= 0:
            raise ConfigError(f"limit must be above zero, or None for no limit, got {self.limit}")

    @classmethod
    def of_size(cls, size: Any) -> "StableHadamardConfig":
        """m = D / 4: a token costs m^2 multiply-adds whatever the width, and more would outweigh the model around it on a CPU."""
        return cls(d_model=size.d_model, memory_size=size.d_model // 4)

    def build(self) -> "StableHadamard":
        return StableHadamard(self)


class StableHadamard(Memory[StableHadamardState]):
    def __init__(self, config: StableHadamardConfig) -> None:
        super().__init__()
        self.config = config
        D, m = config.d_model, config.memory_size
        self.norm = nn.LayerNorm(D)
        self.inputs = Linear(D, 3 * m + 1, bias=False)  # k, q, v and the write gate
        self.calibration = config.calibration.build(D, m)
        self.out = Linear(m, D)
        nn.init.normal_(self.inputs.weight, std=D**-0.5)

    def init_state(self, batch_size: int) -> StableHadamardState:
        w, m = self.inputs.weight, self.config.memory_size
        matrix = w.new_zeros(batch_size, m, m, dtype=torch.promote_types(w.dtype, torch.float32))
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        return StableHadamardState(matrix, zeros, zeros.clone())

    def reseed(self, state: StableHadamardState, seeds: Sequence[int] | Int[Tensor, "B"]) -> StableHadamardState:
        """The same streams, which from here on draw the rows of other seeds: one of 0 to 2^31 - 1 a stream."""
        given = torch.as_tensor(seeds).cpu()
        if given.is_floating_point() or given.shape != state.seed.shape or not (0 <= int(given.min()) and int(given.max()) <= MASK):
            raise StateError(f"reseed takes {len(state.seed)} whole numbers of 0 to {MASK}, one a stream; got {given.tolist()}")
        return state._replace(seed=given.long().clone())

    def forward(self, x: Float[Tensor, "B T D"], state: StableHadamardState) -> tuple[Float[Tensor, "B T D"], StableHadamardState]:
        c, dtype = self.config, state.matrix.dtype
        seed = self._seeds(state)
        x = self.norm(x)
        factors = self.calibration(x, seed, state.position[:, None] + torch.arange(x.shape[1]))
        k, q, v, write = self.inputs(x).to(dtype).split((c.memory_size,) * 3 + (1,), dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            k, q, v = self._positive(k), self._positive(q), write.sigmoid() * v
            y, matrix = hadamard_chunkwise(q, k, v, *(f.to(dtype) for f in factors), state.matrix, limit=c.limit, chunk_size=c.chunk_size)
        return self.out(y.to(self.out.weight.dtype)), StableHadamardState(matrix, state.position + x.shape[1], seed)

    def _seeds(self, state: StableHadamardState) -> Tensor:
        """A stream that starts while training is another one every time, as in the paper; everything after follows from its seed."""
        starts = state.position == 0
        if not (self.training and bool(starts.any())):
            return state.seed.clone()
        return torch.where(starts, torch.randint(MASK + 1, starts.shape), state.seed)

    def _positive(self, u: Tensor) -> Tensor:
        u = u.relu() if self.config.positive == "relu" else F.softplus(u)
        return u / (1e-5 + u.sum(-1, keepdim=True))

"""Miras: an associative memory by four choices; Moneta, Yaad and Memora are three of them.

Source: It's All Connected (Behrouz et al., arXiv:2504.13173). A memory is a network that is trained while it reads:

    architecture    what it is             Matrix(), Perceptron(...)
    bias            what it minimises      Squared(), Power(p), Huber(), Product()
    retention       what keeps the past    Keep(), NormQ(q), Simplex(scale), Elastic(threshold), Bounded(bound)
    algorithm       how it steps           Descent(...): step, momentum or none, where gradients are taken

    q, k, v = silu(conv(W x));  keep a_t, step theta_t, momentum eta_t, distance d_t by token and head
    y_t = W_O (rms(M_{W_t}(q_t)) * silu(W_g x_t)),  W_t = F(A_t)           `ops/miras.py` has the rule for A_t

    Moneta   Power(3), NormQ(4)        Yaad   Huber(), Keep()        Memora   Squared(), Simplex()

The rules of linear attention, RetNet, Mamba-2, DeltaNet, Gated DeltaNet and Titans are other choices; tests hold them equal to their own.
State: dual weights and momentum, 8 B H |W| bytes (4 without momentum), the anchor inside a segment, the convolution's last inputs.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.fast_weights import Associations, Logits, Matrix, Perceptron, Readout, check_descent, first_state, first_weights, logit
from memseq.layers.sizes import check_at_least_one
from memseq.ops.miras import Bounded, Elastic, Huber, Keep, NormQ, Power, Product, Simplex, Squared, miras_chunkwise
from memseq.ops.titans import FastState, Gates

__all__ = ["Descent", "Matrix", "MemoraConfig", "MirasConfig", "MirasMemory", "MirasState", "MonetaConfig", "Perceptron", "YaadConfig"]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Gradient descent, one step a token, with gradients at the weights of the open segment's first token."""

    segment_length: int = 16  # b, part of the function; 1: every gradient at the last weights
    keep: float | None = 0.99  # a at the start; None: nothing is forgotten
    step: float = 0.1  # theta at the start
    step_limit: float = 1.0  # the largest theta
    momentum: float | None = None  # eta at the start; None: without
    gradient_limit: float | None = 4.0  # of a token's gradient, over all weights; None: none

    def __post_init__(self) -> None:
        check_descent(self)


class MirasState(NamedTuple):
    fast: FastState  # dual weights, momentum, dual anchor, and the position in the segment, on the host
    tail: Float[Tensor, "B W C"]  # what the convolution still sees


@dataclass(frozen=True, kw_only=True)
class MirasConfig:
    d_model: int
    n_heads: int = 4
    architecture: Matrix | Perceptron = Perceptron()
    bias: Squared | Power | Huber | Product = Squared()
    retention: Keep | NormQ | Simplex | Elastic | Bounded = Keep()
    algorithm: Descent = Descent()
    delta: float = 1.0  # of a Huber bias, at the start
    conv_width: int = 4  # 1: no convolution
    chunk_size: int = 64  # speed only

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, 0.0)
        check_at_least_one(self, "conv_width", "chunk_size")
        if self.delta <= 0:
            raise ConfigError(f"delta must be above 0, got {self.delta}")

    @property
    def segment_length(self) -> int:
        return self.algorithm.segment_length

    @classmethod
    def of_size(cls, size: Any) -> Any:
        """The memory of a `presets.Size`."""
        return cls(d_model=size.d_model, n_heads=size.n_heads)

    def build(self) -> "MirasMemory":
        return MirasMemory(self)


@dataclass(frozen=True, kw_only=True)
class MonetaConfig(MirasConfig):
    """l_3 bias, l_4 retention."""

    bias: Squared | Power | Huber | Product = Power(p=3.0)
    retention: Keep | NormQ | Simplex | Elastic | Bounded = NormQ(q=4.0)


@dataclass(frozen=True, kw_only=True)
class YaadConfig(MirasConfig):
    """Huber bias: what is far off is written, but no harder than what is near."""

    bias: Squared | Power | Huber | Product = Huber()


@dataclass(frozen=True, kw_only=True)
class MemoraConfig(MirasConfig):
    """Every output's weights are shares of its inputs: none can grow."""

    retention: Keep | NormQ | Simplex | Elastic | Bounded = Simplex()


class MirasMemory(Memory[MirasState]):
    def __init__(self, config: MirasConfig) -> None:
        super().__init__()
        c = self.config = config
        self.network = c.architecture.network(c.d_model // c.n_heads, c.d_model // c.n_heads)
        self.associate = Associations(c.d_model, c.n_heads, c.conv_width)
        a = c.algorithm
        starts = [z for z in (a.keep, a.momentum, a.step / a.step_limit) if z is not None]
        logits = [logit(z) for z in starts]
        if isinstance(c.bias, Huber):
            logits.append(math.log(math.expm1(c.delta)))  # of a softplus
        self.rates = Logits(c.d_model, c.n_heads, logits)
        self.first = first_weights(self.network, c.n_heads)
        if not isinstance(c.retention, Keep):  # a matrix of zeros has no norm, and equal shares have equal gradients
            for W in self.first:
                if W.ndim == 3:
                    nn.init.normal_(W, std=W.shape[1] ** -0.5)
        self.readout = Readout(c.d_model, c.n_heads)

    def init_state(self, batch_size: int) -> MirasState:
        fast = first_state(self.first, batch_size, momentum=self.config.algorithm.momentum is not None)
        return MirasState(fast, self.associate.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: MirasState) -> tuple[Float[Tensor, "B T D"], MirasState]:
        o, after = self._learn(x, state, reading=True)
        return self.readout(o, x), after

    def advance(self, x: Float[Tensor, "B T D"], state: MirasState) -> MirasState:
        self.check_input(x, state)
        return self._learn(x, state, reading=False)[1]

    def gates(self, x: Float[Tensor, "B T D"]) -> tuple[Gates, Float[Tensor, "B H T"] | None]:
        """What each token of x keeps, carries on and steps, and the distance of a Huber bias."""
        a, logits = self.config.algorithm, list(self.rates(x))
        delta = F.softplus(logits.pop()) if isinstance(self.config.bias, Huber) else None
        step = a.step_limit * logits.pop().sigmoid()
        momentum = None if a.momentum is None else F.logsigmoid(logits.pop())
        return Gates(torch.zeros_like(step) if a.keep is None else F.logsigmoid(logits.pop()), momentum, step), delta

    def _learn(self, x: Tensor, state: MirasState, *, reading: bool) -> tuple[Tensor, MirasState]:
        c = self.config
        q, k, v, tail = self.associate(x, state.tail)
        gates, delta = self.gates(x)
        o, fast = miras_chunkwise(
            self.network,
            q if reading else None,
            k,
            v,
            gates,
            delta,
            state.fast,
            bias=c.bias,
            retention=c.retention,
            segment_length=c.segment_length,
            chunk_size=c.chunk_size,
            limit=c.algorithm.gradient_limit,
        )
        return o, MirasState(fast, tail)

"""ATLAS: memories that learn from the last few tokens at once, on polynomial features, with an optimiser of matrices.

Source: ATLAS (Behrouz et al., arXiv:2505.23735). Around the memory stands what Titans has (`layers/fast_weights.py`), the rule is
`ops/omega.py`:

    q, k, v = silu(conv(W x));  gamma_t, keep a_t, momentum eta_t, step theta_t by token and head
    phi     polynomial features of degree p, with a learned weight a degree (`ops/polynomial.py`); p = None: none
    U_t     = sum over the last c tokens of gamma_i * gradient of their loss, at the anchor
    y_t     = W_O (rms(M_{W_t}(phi(q_t))) * silu(W_g x_t))

    OmegaNet           squared error, perceptron, descent            Atlas             squared error, perceptron, momentum and Muon
    Dot                squared error, p = 3, no momentum             DeepTransformers  inner product, p = 3, one token

Dot and DeepTransformers are published with the features of the exponential, for which every key would have to be kept; here they have
a polynomial of it, so that their state is constant as well. A step is divided by the tokens of the window: keys of length one, c of them,
would add up.
State: weights and momentum, 8 B H |W| bytes, the anchor inside a segment, the window, 8 B (c - 1) D bytes, the convolution's last inputs.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.fast_weights import Associations, Logits, Matrix, Perceptron, Readout, check_descent, first_state, first_weights, logit
from memseq.layers.sizes import check_at_least_one
from memseq.ops.fast_network import Norm
from memseq.ops.omega import Window, omega_chunkwise
from memseq.ops.polynomial import monomials, polynomial_features
from memseq.ops.titans import FastState, Gates

__all__ = ["AtlasConfig", "AtlasMemory", "AtlasState", "DeepTransformersConfig", "DotConfig", "OmegaNetConfig"]


class AtlasState(NamedTuple):
    fast: FastState  # weights, momentum, anchor, and the position in the segment, on the host
    window: Window  # the c - 1 tokens before the next
    tail: Float[Tensor, "B W C"]  # what the convolution still sees


@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """Atlas; its family by other values of the same fields."""

    d_model: int
    n_heads: int = 8
    window: int = 8  # c
    degree: int | None = 2  # p of the features; None: keys as they are
    architecture: Matrix | Perceptron = Perceptron(form="plain")
    bias: Literal["squared", "product"] = "squared"  # 1/2 |M(k) - v|^2, or -M(k) . v
    muon: int | None = 5  # Newton-Schulz iterations on the momentum; None: plain descent
    segment_length: int = 16  # b: tokens whose gradients are taken at one anchor; part of the function
    keep: float | None = 0.99  # a at the start; None: nothing is forgotten
    momentum: float | None = 0.9  # eta at the start; None: without
    step: float = 0.1  # theta at the start, divided by the window
    step_limit: float = 1.0  # the largest theta, divided by the window
    gradient_limit: float | None = 4.0  # of a token's gradient, over all weights of M; None: none
    conv_width: int = 4  # 1: no convolution
    chunk_size: int = 64  # speed only

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, 0.0)
        check_at_least_one(self, "window", "conv_width", "chunk_size")
        if self.degree is not None and not 1 <= self.degree <= 4:
            raise ConfigError(
                f"degree must lie in 1 to 4 (features of size K and degree p number (K + p choose p)), or None, got {self.degree}"
            )
        if self.bias not in ("squared", "product"):
            raise ConfigError(f"bias must be 'squared' or 'product', got {self.bias!r}")
        if self.muon is not None and self.muon < 0:
            raise ConfigError(f"muon is a number of iterations of at least 0, or None for plain descent, got {self.muon}")
        if self.muon is not None and isinstance(self.architecture, Perceptron) and self.architecture.form == "normed":
            raise ConfigError("Muon is for matrices and a normed perceptron has a gain; use form='residual' or 'plain', or muon=None")
        if self.degree is not None and isinstance(self.architecture, Perceptron) and self.architecture.form != "plain":
            raise ConfigError("a path around M needs as many outputs as inputs, and features are more; use form='plain', or degree=None")
        check_descent(self)

    @property
    def n_features(self) -> int:
        """Numbers that M reads of a key."""
        K = self.d_model // self.n_heads
        return K if self.degree is None else sum(len(monomials(K, i)[0]) for i in range(self.degree + 1))

    @classmethod
    def of_size(cls, size: Any) -> Any:
        """The memory of a `presets.Size`, with heads of at most 16 features, whose polynomials stay small."""
        return cls(d_model=size.d_model, n_heads=max(size.n_heads, size.d_model // 16))

    def build(self) -> "AtlasMemory":
        return AtlasMemory(self)


@dataclass(frozen=True, kw_only=True)
class OmegaNetConfig(AtlasConfig):
    """Plain descent on the window."""

    muon: int | None = None
    momentum: float | None = None


@dataclass(frozen=True, kw_only=True)
class DotConfig(AtlasConfig):
    """Plain descent on features of the exponential, to the third degree: attention that corrects what it says."""

    degree: int | None = 3
    muon: int | None = None
    momentum: float | None = None


@dataclass(frozen=True, kw_only=True)
class DeepTransformersConfig(AtlasConfig):
    """Hebbian writes to a deep memory on features of the exponential, to the third degree; a window above 1 makes it SWDT."""

    degree: int | None = 3
    window: int = 1
    bias: Literal["squared", "product"] = "product"
    muon: int | None = None
    momentum: float | None = None


class AtlasMemory(Memory[AtlasState]):
    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        c = self.config = config
        self.network = c.architecture.network(c.n_features, c.d_model // c.n_heads)
        self.associate = Associations(c.d_model, c.n_heads, c.conv_width)
        starts = [z for z in (c.keep, c.momentum, c.step / c.step_limit) if z is not None]
        self.rates = Logits(c.d_model, c.n_heads, [*map(logit, starts), 2.0])  # the last: what a token counts
        self.first = first_weights(self.network, c.n_heads)
        zeros = not isinstance(self.network.fast[-1], Norm)  # of a last matrix, through which no gradient would reach the one below:
        if zeros and (c.bias == "product" or c.muon is not None):  # nothing would be written there, or next to nothing made orthogonal
            nn.init.normal_(self.first[-1], std=self.first[-1].shape[1] ** -0.5)
        if c.degree is not None:
            self.degrees = nn.Parameter(torch.tensor([-math.lgamma(i + 1) for i in range(c.degree + 1)]))  # log a_i: of the exponential
        self.readout = Readout(c.d_model, c.n_heads)

    def init_state(self, batch_size: int) -> AtlasState:
        c = self.config
        fast = first_state(self.first, batch_size, momentum=c.momentum is not None)
        like = fast.weights[0]
        size = (batch_size, c.n_heads, c.window - 1)
        vectors = like.new_zeros(*size, c.d_model // c.n_heads)
        return AtlasState(fast, Window(vectors, vectors.clone(), like.new_zeros(size)), self.associate.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: AtlasState) -> tuple[Float[Tensor, "B T D"], AtlasState]:
        o, after = self._learn(x, state, reading=True)
        return self.readout(o, x), after

    def advance(self, x: Float[Tensor, "B T D"], state: AtlasState) -> AtlasState:
        self.check_input(x, state)
        return self._learn(x, state, reading=False)[1]

    def features(self, k: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T F"]:
        """phi, of length one where the coefficients are those of a sum to one."""
        if self.config.degree is None:
            return k
        a = self.degrees.to(k.dtype).softmax(0)  # phi(k) . phi(k) = sum a_i = 1 for keys of length one: steps keep their size
        return polynomial_features(k, a)

    def gates(self, x: Float[Tensor, "B T D"]) -> tuple[Gates, Float[Tensor, "B H T"]]:
        """What each token of x keeps, carries on and steps, and what it counts."""
        c, logits = self.config, list(self.rates(x))
        gamma, step = logits.pop().sigmoid(), c.step_limit / c.window * logits.pop().sigmoid()
        momentum = None if c.momentum is None else F.logsigmoid(logits.pop())
        return Gates(torch.zeros_like(step) if c.keep is None else F.logsigmoid(logits.pop()), momentum, step), gamma

    def _learn(self, x: Tensor, state: AtlasState, *, reading: bool) -> tuple[Tensor, AtlasState]:
        c = self.config
        q, k, v, tail = self.associate(x, state.tail)
        gates, gamma = self.gates(x)
        o, fast, window = omega_chunkwise(
            self.network,
            q if reading else None,
            k,
            v,
            gamma,
            gates,
            state.fast,
            state.window,
            slope=_error if c.bias == "squared" else _product,
            features=self.features,
            segment_length=c.segment_length,
            muon=c.muon,
            chunk_size=c.chunk_size,
            limit=c.gradient_limit,
        )
        return o, AtlasState(fast, window, tail)


def _error(prediction: Tensor, value: Tensor) -> Tensor:
    """The gradient of 1/2 |prediction - value|^2."""
    return prediction - value


def _product(prediction: Tensor, value: Tensor) -> Tensor:
    """The gradient of -(prediction . value), of the prediction's graph."""
    return -value + 0 * prediction

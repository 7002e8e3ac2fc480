"""Miras: a memory is what it minimises, what keeps its past, and how it steps; the dual form for all of them.

Source: It's All Connected (Behrouz et al., arXiv:2504.13173). M is the fast network (`ops/fast_network.py`), A its dual weights,
W = F(A) the weights that it works with, F the map that a retention stands for:

    u_t = gradient of the bias at M_{F(anchor)}(k_t)               anchor: A at the open segment's first token
    S_t = eta_t S_{t-1} - theta_t u_t,   A_t = a_t A_{t-1} + S_t     as in `ops/titans.py`, momentum or none
    y_t = M_{W_t}(q_t)

    bias        gradient at the output, e = prediction - value           retention   W
    Squared     e                                                        Keep        A
    Power(p)    p sign(e) |e|^(p-1)                                      NormQ(q)    A / |A|_q^(q-2), one norm a matrix
    Huber       e min(1, d_t / |e|), d_t by token                        Simplex(c)  c softmax(A) over each output's inputs
    Product     -value                                                   Elastic(g)  sign(A) max(|A| - g, 0)
                                                                         Bounded(c)  c tanh(A / c)

Inside a segment A_t is linear in A_0, S_0 and the gradients, so segments go by matrix products (`titans.py`). How a token reads:

    Keep       every product with W_t is mixed in its place, no W_t is formed
    NormQ      likewise, with the norm of the segment's first token: frozen, as the paper has it, and part of the function
    others     W_t is formed for every token: L |W| numbers a head and chunk, exact; segments of 16 suit them

F leaves the gains of a Norm as they are. For Simplex with one a_t a head this is the paper's softmax(a_t log W_{t-1} - eta_t u_t), because
a softmax does not see a constant: A is kept, and no logarithm is taken. Elastic is the lazy form of the paper's soft threshold: A is
never cut, W is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.errors import ConfigError
from memseq.ops.fast_network import Factors, Fast, Linear, Mixture, Network
from memseq.ops.precision import unrounded
from memseq.ops.titans import FastState, Gates, close_segments, cuts_of, limited, mixtures, move, one_step, pieces_of, precise_inputs

__all__ = [
    "Bias",
    "Bounded",
    "Elastic",
    "Huber",
    "Keep",
    "NormQ",
    "Power",
    "Product",
    "Retention",
    "Simplex",
    "Squared",
    "miras_chunkwise",
    "miras_recurrent",
]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Tokens = Float[Tensor, "B H T"]
SMALL = 1e-12


@dataclass(frozen=True, kw_only=True)
class Squared:
    """1/2 |e|^2."""

    def slope(self, prediction: Values, value: Values, delta: Tokens | None) -> Values:
        return prediction - value


@dataclass(frozen=True, kw_only=True)
class Power:
    """sum |e|^p. Below p = 2 the slope is smoothed at zero: sign(e) as tanh(10 e), |e| as sqrt(e^2 + 1e-6)."""

    p: float = 3.0

    def __post_init__(self) -> None:
        if self.p < 1:
            raise ConfigError(f"p must be at least 1 for a loss with a minimum that is found, got {self.p}")

    def slope(self, prediction: Values, value: Values, delta: Tokens | None) -> Values:
        e = prediction - value
        if self.p == 2:
            return 2 * e
        if self.p > 2:
            return self.p * e * e.abs().pow(self.p - 2)
        return self.p * torch.tanh(10 * e) * (e.square() + 1e-6).pow((self.p - 1) / 2)


@dataclass(frozen=True, kw_only=True)
class Huber:
    """1/2 |e|^2 up to |e| = d_t, linear beyond: one value that is far off moves no more than one at d_t."""

    def slope(self, prediction: Values, value: Values, delta: Tokens | None) -> Values:
        if delta is None:
            raise ConfigError("a Huber loss needs delta, the distance up to which it is quadratic, one a head and token")
        e = prediction - value
        size = (e.square().sum(-1) + SMALL).sqrt()
        return e * (delta / torch.maximum(delta, size))[..., None]


@dataclass(frozen=True, kw_only=True)
class Product:
    """-(prediction . value): Hebbian writes, as linear attention."""

    def slope(self, prediction: Values, value: Values, delta: Tokens | None) -> Values:
        return -value + 0 * prediction  # of the prediction's graph, which carries a gradient of zero


@dataclass(frozen=True, kw_only=True)
class Keep:
    """W = A: the squared distance to what was, with a_t the share that is kept."""

    def primal(self, A: Tensor) -> Tensor:
        return A


@dataclass(frozen=True, kw_only=True)
class NormQ:
    """W = A / |A|_q^(q-2), entrywise norm of each matrix."""

    q: float = 4.0

    def __post_init__(self) -> None:
        if self.q < 2:
            raise ConfigError(f"q must be at least 2, got {self.q}; q=2 keeps the weights as they are")

    def norm(self, A: Tensor) -> Float[Tensor, "B H 1 1"]:
        """What A is divided by."""
        total = A.abs().pow(self.q).sum((-2, -1), keepdim=True).clamp(min=SMALL)
        return total.pow((self.q - 2) / self.q)

    def primal(self, A: Tensor) -> Tensor:
        return A / self.norm(A)


@dataclass(frozen=True, kw_only=True)
class Simplex:
    """W = scale softmax(A) over the inputs of each output: the Kullback-Leibler divergence to what was."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ConfigError(f"scale must be above 0, got {self.scale}")

    def primal(self, A: Tensor) -> Tensor:
        return self.scale * A.softmax(-2)


@dataclass(frozen=True, kw_only=True)
class Elastic:
    """W = A without what is smaller than `threshold`: small weights are forgotten at once."""

    threshold: float = 1e-3

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ConfigError(f"threshold must be at least 0, got {self.threshold}")

    def primal(self, A: Tensor) -> Tensor:
        return A - A.clamp(-self.threshold, self.threshold)


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """W = bound tanh(A / bound): an elementwise Bregman divergence that keeps every weight inside (-bound, bound)."""

    bound: float = 1.0

    def __post_init__(self) -> None:
        if self.bound <= 0:
            raise ConfigError(f"bound must be above 0, got {self.bound}")

    def primal(self, A: Tensor) -> Tensor:
        return self.bound * torch.tanh(A / self.bound)


Bias = Squared | Power | Huber | Product
Retention = Keep | NormQ | Simplex | Elastic | Bounded


def _primal(network: Network, retention: Retention, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """F of every matrix; gains stay."""
    return tuple(retention.primal(A) if isinstance(layer, Linear) else A for layer, A in zip(network.fast, weights, strict=True))


def miras_chunkwise(
    network: Network,
    q: Keys | None,
    k: Keys,
    v: Values,
    gates: Gates,
    delta: Tokens | None,
    state: FastState,
    *,
    bias: Bias,
    retention: Retention,
    segment_length: int,
    chunk_size: int = 64,
    limit: float | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """Equal to `miras_recurrent`; `state` holds the dual weights, their momentum and the dual anchor. No outputs without queries."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    y, cuts = [], cuts_of(state.position, k.shape[2], segment_length, chunk_size)
    deltas = [None] * len(cuts) if delta is None else delta.to(k.dtype).split(cuts, dim=2)
    with unrounded(k):
        for (q_i, k_i, v_i, gates_i), d_i in zip(pieces_of(q, k, v, gates, cuts), deltas, strict=True):
            anchor = _primal(network, retention, state.anchor)
            prediction, way = network.kept(k_i, anchor)
            factors = limited(network, network.factors(bias.slope(prediction, v_i, d_i), way, anchor), limit)
            mix, momentum = mixtures(gates_i)
            if q_i is not None:
                y.append(_read(network, retention, q_i, state, factors, mix))
            state = close_segments(move(network, state, factors, mix.row(-1), momentum), k_i.shape[2], segment_length)
    return torch.cat(y, dim=2) if y else v[:, :, :0], state


def miras_recurrent(
    network: Network,
    q: Keys,
    k: Keys,
    v: Values,
    gates: Gates,
    delta: Tokens | None,
    state: FastState,
    *,
    bias: Bias,
    retention: Retention,
    segment_length: int,
    limit: float | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """The definition, token by token, with every gradient formed: what the chunkwise form is tested against."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    y = []
    with unrounded(k):
        for t in range(k.shape[2]):
            now = slice(t, t + 1)
            anchor = _primal(network, retention, state.anchor)
            prediction, way = network.kept(k[:, :, now], anchor)
            g = bias.slope(prediction, v[:, :, now], None if delta is None else delta.to(k.dtype)[:, :, now])
            opening = state.anchor
            state = one_step(state, network.factors(g, way, anchor), gates.each(lambda z: z[:, :, t]), limit)  # noqa: B023 (called at once)
            if isinstance(retention, NormQ):  # the norm of the segment's first token
                norms = [retention.norm(A) if isinstance(layer, Linear) else 1.0 for layer, A in zip(network.fast, opening, strict=True)]
                weights: Sequence[Tensor] = [A / n for A, n in zip(state.weights, norms, strict=True)]
            else:
                weights = _primal(network, retention, state.weights)
            y.append(network(q[:, :, now], weights))
            state = close_segments(state, 1, segment_length)
    return torch.cat(y, dim=2), state


def _read(network: Network, retention: Retention, q: Keys, state: FastState, factors: Sequence[Factors], mix: Mixture) -> Values:
    """M_{W_t}(q_t) for every t."""
    carry = state.momentum or [None] * len(factors)

    def mixed(i: int, layer: Fast, X: Tensor) -> Tensor:
        return layer.mixed(X, state.weights[i], carry[i], factors[i], mix)

    if isinstance(retention, Keep):
        return network.run(q, mixed)
    if isinstance(retention, NormQ):

        def product(i: int, layer: Fast, X: Tensor) -> Tensor:  # linear in X: the frozen norm divides what enters
            return mixed(i, layer, X / retention.norm(state.anchor[i]) if isinstance(layer, Linear) else X)

        return network.run(q, product)
    return _read_formed(network, retention.primal, q, state, factors, mix)


def _read_formed(
    network: Network, primal: Callable[[Tensor], Tensor], q: Keys, state: FastState, factors: Sequence[Factors], mix: Mixture
) -> Values:
    """With the weights of every token formed."""
    carry: Sequence[Tensor | None] = state.momentum or [None] * len(factors)

    def product(i: int, layer: Fast, X: Tensor) -> Tensor:
        if not isinstance(layer, Linear):
            return layer.mixed(X[..., 0, :], state.weights[i], carry[i], factors[i], mix)[..., None, :]
        A = mix.weights[..., None, None] * state.weights[i][:, :, None]
        A = A - (mix.surprise[..., None] * factors[i].inputs[:, :, None]).mT @ factors[i].errors[:, :, None]
        S = carry[i]
        if S is not None and mix.momentum is not None:
            A = A + mix.momentum[..., None, None] * S[:, :, None]
        return X @ primal(A)

    return network.run(q[..., None, :], product)[..., 0, :]

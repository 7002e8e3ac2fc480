"""The fast network M: a small network whose weights are a state, and the gradient of its loss, written by hand.

A stream's memory (Titans, ATLAS, Miras) is such a network; every head of every stream has weights of its own. A network is a
tuple of layers, each in two parts: X = enter(u), which has no weights, and the product of X with the layer's fast weights. `keep` is
`enter` for those who come back: with what `leave` needs to take a gradient from X to u.

    Linear       X = u, or [u | 1] with a bias        u' = X W           W [I, O]: the bias is its last row
    Norm         X = (u - mean u) / std u             u' = X * gain      gain [O]
    Activation   u' = act(u)                          no fast weights
    Gated        u' = act(u_1) * u_2, [u_1 | u_2] = u no fast weights
    M(x) = u', or x + u' with `residual`

The gradient of a loss whose gradient at the output is g is, for every fast weight, a product of two factors of the same token:

    dW = X^T g,   g_u = g W^T                dgain = X * g,   g_X = g * gain

so the gradients of L tokens are kept as factors, L (I + O) numbers, and never as weights, L I O numbers. All of it is
differentiable once more (the outer gradient): activations come with their slope and its slope.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.ops.mixed_products import MixedProduct, Moved, SquaredGradient, Stepped
from memseq.ops.normalize import standard, standard_back

__all__ = ["Activation", "Factors", "Fast", "Gated", "Layer", "Linear", "Mixture", "Network", "Norm", "mlp"]

Kind = Literal["gelu", "silu", "tanh"]
Weights = Sequence[Tensor]  # one for every layer that has fast weights, in their order: [B, H, I, O] or [B, H, O]
EPS = 1e-5


class Factors(NamedTuple):
    """The gradient of one fast weight by token: X^T g of a Linear, X * g of a Norm."""

    inputs: Float[Tensor, "... T I"]  # X
    errors: Float[Tensor, "... T O"]  # g


class Mixture(NamedTuple):
    """Weights of T moments, as mixtures of W_0, S_0 and the gradients u_j of E tokens: beta_t W_0 + f_t S_0 - sum_j G_tj u_j."""

    weights: Float[Tensor, "... T"]  # beta
    momentum: Float[Tensor, "... T"] | None  # f; None where there is no S_0
    surprise: Float[Tensor, "... T E"]  # G

    def row(self, t: int) -> "Mixture":
        return Mixture(self.weights[..., t], None if self.momentum is None else self.momentum[..., t], self.surprise[..., t, :])


@dataclass(frozen=True, kw_only=True)
class Linear:
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs + self.bias, self.outputs

    def enter(self, u: Tensor) -> Tensor:
        return F.pad(u, (0, 1), value=1.0) if self.bias else u

    def keep(self, u: Tensor) -> tuple[Tensor, Any]:
        return self.enter(u), None

    def leave(self, g: Tensor, kept: Any) -> Tensor:
        return g[..., :-1] if self.bias else g

    def times(self, X: Tensor, W: Tensor) -> Tensor:
        return X @ W

    def transposed(self, g: Tensor, W: Tensor) -> Tensor:
        return g @ W.mT

    def mixed(self, X: Tensor, W: Tensor, S: Tensor | None, of: Factors, mix: Mixture) -> Tensor:
        """X_t W_t for every t, W_t the mixture of row t: no W_t is formed."""
        return MixedProduct.apply(X, W, S, of.inputs, of.errors, mix.weights, mix.momentum, mix.surprise)

    def summed(self, of: Factors, weight: Float[Tensor, "... E"]) -> Tensor:
        """sum_j weight_j X_j^T g_j"""
        return (of.inputs * weight[..., None]).mT @ of.errors

    def moved(self, W: Tensor, S: Tensor | None, of: Factors, end: Mixture, carried: Mixture | None) -> tuple[Tensor, Tensor | None]:
        """W_L and S_L, from the rows of their mixtures at the chunk's end."""
        S_row = (None, None) if carried is None else (carried.weights, carried.surprise)
        return Moved.apply(W, S, of.inputs, of.errors, end.weights, end.momentum, end.surprise, *S_row)

    def stepped(
        self, W: Tensor, S: Tensor | None, of: Factors, step: Tensor, keep: Tensor | None, eta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """keep W + S' and S' = eta S - sum_j step_j X_j^T g_j."""
        return Stepped.apply(W, S, of.inputs, of.errors, step, keep, eta)

    def squared(self, of: Factors) -> Float[Tensor, "... T"]:
        """The squared norm of each token's gradient."""
        return SquaredGradient.apply(of.inputs, of.errors)


@dataclass(frozen=True, kw_only=True)
class Norm:
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def enter(self, u: Tensor) -> Tensor:
        return self.keep(u)[0]

    def keep(self, u: Tensor) -> tuple[Tensor, Any]:
        X, scale = standard(u, EPS)
        return X, (X, scale)

    def leave(self, g: Tensor, kept: Any) -> Tensor:
        return standard_back(g, *kept)

    def times(self, X: Tensor, W: Tensor) -> Tensor:
        return X * W[..., None, :]

    def transposed(self, g: Tensor, W: Tensor) -> Tensor:
        return g * W[..., None, :]

    def mixed(self, X: Tensor, W: Tensor, S: Tensor | None, of: Factors, mix: Mixture) -> Tensor:
        gain = mix.weights[..., None] * W[..., None, :] - mix.surprise @ (of.inputs * of.errors)
        return X * (gain if S is None or mix.momentum is None else gain + mix.momentum[..., None] * S[..., None, :])

    def summed(self, of: Factors, weight: Float[Tensor, "... E"]) -> Tensor:
        return (weight[..., None, :] @ (of.inputs * of.errors))[..., 0, :]

    def moved(self, W: Tensor, S: Tensor | None, of: Factors, end: Mixture, carried: Mixture | None) -> tuple[Tensor, Tensor | None]:
        W_end = end.weights[..., None] * W - self.summed(of, end.surprise)
        if S is None or end.momentum is None or carried is None:
            return W_end, None
        return W_end + end.momentum[..., None] * S, carried.weights[..., None] * S - self.summed(of, carried.surprise)

    def stepped(
        self, W: Tensor, S: Tensor | None, of: Factors, step: Tensor, keep: Tensor | None, eta: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        S_end = -self.summed(of, step) if S is None or eta is None else eta[..., None] * S - self.summed(of, step)
        return (W if keep is None else keep[..., None] * W) + S_end, S_end

    def squared(self, of: Factors) -> Float[Tensor, "... T"]:
        return (of.inputs * of.errors).square().sum(-1)


@dataclass(frozen=True, kw_only=True)
class Activation:
    kind: Kind = "gelu"

    def enter(self, u: Tensor) -> Tensor:
        return _CURVES[self.kind].value(u)

    def keep(self, u: Tensor) -> tuple[Tensor, Any]:
        return _ValueAndSlope.apply(u, self.kind)

    def leave(self, g: Tensor, kept: Any) -> Tensor:
        return g * kept


@dataclass(frozen=True, kw_only=True)
class Gated:
    kind: Kind = "silu"

    def enter(self, u: Tensor) -> Tensor:
        gate, value = u.chunk(2, dim=-1)
        return _CURVES[self.kind].value(gate) * value

    def keep(self, u: Tensor) -> tuple[Tensor, Any]:
        gate, value = u.chunk(2, dim=-1)
        opened, slope = _ValueAndSlope.apply(gate, self.kind)
        return opened * value, (opened, slope, value)

    def leave(self, g: Tensor, kept: Any) -> Tensor:
        opened, slope, value = kept
        return torch.cat([g * value * slope, g * opened], dim=-1)


Fast = Linear | Norm  # a layer with fast weights
Layer = Fast | Activation | Gated


@dataclass(frozen=True, kw_only=True)
class Network:
    """The function M and its gradient, for weights that are given; it holds no numbers."""

    layers: tuple[Layer, ...]
    residual: bool = False

    @property
    def fast(self) -> tuple[Fast, ...]:
        return tuple(layer for layer in self.layers if isinstance(layer, Fast))

    @property
    def size(self) -> int:
        """Numbers in the fast weights of one head, |W|."""
        return sum(math.prod(layer.shape) for layer in self.fast)

    def run(self, x: Float[Tensor, "... T K"], product: Callable[[int, Fast, Tensor], Tensor]) -> Float[Tensor, "... T V"]:
        """M with `product(i, layer, X)` in the place of X times the i-th fast weight."""
        u, i = x, 0
        for layer in self.layers:
            u = layer.enter(u)
            if isinstance(layer, Fast):
                u, i = product(i, layer, u), i + 1
        return x + u if self.residual else u

    def __call__(self, x: Float[Tensor, "... T K"], weights: Weights) -> Float[Tensor, "... T V"]:
        """M(x) at `weights`, [..., I, O] and [..., O]."""
        return self.run(x, lambda i, layer, X: layer.times(X, weights[i]))

    def kept(self, x: Float[Tensor, "... T K"], weights: Weights) -> tuple[Float[Tensor, "... T V"], list[Any]]:
        """M(x), and what `factors` needs of the way there."""
        u, way, i = x, [], 0
        for layer in self.layers:
            u, kept = layer.keep(u)
            way.append((u, kept))
            if isinstance(layer, Fast):
                u, i = layer.times(u, weights[i]), i + 1
        return (x + u if self.residual else u), way

    def factors(self, g: Float[Tensor, "... T V"], way: list[Any], weights: Weights) -> list[Factors]:
        """The gradient of every fast weight, from the loss's gradient g at the output."""
        found, i = [], len(weights)
        for depth, layer in reversed(list(enumerate(self.layers))):
            X, kept = way[depth]
            if isinstance(layer, Fast):
                i -= 1
                found.append(Factors(X, g))
                if depth == 0:  # nothing asks for the gradient of the keys
                    break
                g = layer.transposed(g, weights[i])
            g = layer.leave(g, kept)
        return found[::-1]


def mlp(
    sizes: Sequence[int], *, activation: Kind = "gelu", gated: bool = False, bias: bool = False, norm: bool = False, residual: bool = False
) -> Network:
    """Linear layers of `sizes` with activations between them; `gated` doubles what enters one, `norm` ends in a Norm.

    >>> mlp((4, 16, 4)).size
    128
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigError(f"a fast network needs an input and an output size of at least 1, got {tuple(sizes)}")
    if residual and sizes[0] != sizes[-1]:
        raise ConfigError(f"a residual network hands on what it reads: its sizes {tuple(sizes)} must begin and end alike")
    layers: list[Layer] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        hidden = i < len(sizes) - 2
        layers.append(Linear(inputs=inputs, outputs=outputs * (2 if gated and hidden else 1), bias=bias))
        if hidden:
            layers.append(Gated(kind=activation) if gated else Activation(kind=activation))
    return Network(layers=(*layers, Norm(size=sizes[-1])) if norm else tuple(layers), residual=residual)


class _ValueAndSlope(torch.autograd.Function):
    """act(u) and act'(u), with one gradient for both: act' is taken once, and act'' torch writes out in many passes or not at all."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
        slope = _CURVES[kind].slope(u)
        ctx.save_for_backward(u, slope)
        ctx.set_materialize_grads(False)
        ctx.kind = kind
        return _CURVES[kind].value(u), slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *d: Any) -> tuple[Tensor | None, None]:
        (u, slope), (d_value, d_slope) = ctx.saved_tensors, d
        if d_slope is None:
            return None if d_value is None else d_value * slope, None
        bend = _CURVES[ctx.kind].bend(u).mul_(d_slope)
        return (bend if d_value is None else bend.addcmul_(d_value, slope)), None


class _Curve(NamedTuple):
    value: Callable[[Tensor], Tensor]  # act(u)
    slope: Callable[[Tensor], Tensor]  # act'(u)
    bend: Callable[[Tensor], Tensor]  # act''(u)


def _gelu_bend(u: Tensor) -> Tensor:
    """(2 - u^2) times the normal density."""
    square = u * u
    return (square * -0.5).exp_().mul_(square.neg_().add_(2)).mul_(1 / math.sqrt(2 * math.pi))


def _silu_slope(u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 + u * (1 - s))


def _silu_bend(u: Tensor) -> Tensor:
    s = torch.sigmoid(u)
    return s * (1 - s) * (2 + u * (1 - 2 * s))


def _tanh_bend(u: Tensor) -> Tensor:
    value = torch.tanh(u)
    return -2 * value * (1 - value * value)


def _tanh_slope(u: Tensor) -> Tensor:
    return 1 - torch.tanh(u).square()


_CURVES = {
    "gelu": _Curve(F.gelu, lambda u: torch.ops.aten.gelu_backward(torch.ones_like(u), u), _gelu_bend),
    "silu": _Curve(F.silu, _silu_slope, _silu_bend),
    "tanh": _Curve(torch.tanh, _tanh_slope, _tanh_bend),
}

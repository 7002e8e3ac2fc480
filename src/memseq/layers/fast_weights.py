"""What stands around a memory that learns while it reads: keys, values and queries, gates by token, the first weights, the read-out.

Shared by Titans (arXiv:2501.00663), ATLAS (arXiv:2505.23735) and Miras (arXiv:2504.13173), which differ in what happens in between.

    q, k, v = silu(conv(W x))                 split into H heads; conv: causal and by channel (`layers/short_conv.py`)
    q, k   -> q / |q|, k / |k|                so that a step of size theta contracts an error by 1 - theta at most
    gates  = W_r x + b_r                      one logit a head, float32 at least also under autocast
    y      = W_O (gain * rms(o) * silu(W_g x))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import empty
from memseq.errors import ConfigError
from memseq.layers.head_norm import HeadNorm
from memseq.layers.linear import Linear
from memseq.layers.short_conv import ShortConv
from memseq.ops.fast_network import Network, Norm, mlp
from memseq.ops.linear import linear
from memseq.ops.normalize import unit
from memseq.ops.precision import unrounded
from memseq.ops.titans import FastState

__all__ = ["Associations", "Logits", "Matrix", "Perceptron", "Readout", "check_descent", "first_state", "first_weights", "logit", "precise"]

Keys = Float[Tensor, "B H T K"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """M(k) = k W."""

    def network(self, inputs: int, outputs: int) -> Network:
        return mlp((inputs, outputs))


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """M(k) = k + gain * norm(mlp(k)), or without norm, or without the path around, which needs as many outputs as inputs."""

    depth: int = 2
    expansion: int = 4  # hidden units, in the size of the output
    activation: Literal["gelu", "silu", "tanh"] = "gelu"
    gated: bool = False  # act(u) * u' in the place of act(u)
    form: Literal["normed", "residual", "plain"] = "normed"

    def __post_init__(self) -> None:
        if self.depth < 2 or self.expansion < 1:
            raise ConfigError(
                f"a perceptron has a depth of at least 2 and an expansion of 1, got {self.depth} and {self.expansion}; or use Matrix()"
            )
        if self.form not in ("normed", "residual", "plain"):
            raise ConfigError(f"form must be 'normed', 'residual' or 'plain', got {self.form!r}")

    def network(self, inputs: int, outputs: int) -> Network:
        sizes = (inputs, *[self.expansion * outputs] * (self.depth - 1), outputs)
        around = self.form != "plain"
        return mlp(sizes, activation=self.activation, gated=self.gated, norm=self.form == "normed", residual=around)


def check_descent(config: Any) -> None:
    """Raise `ConfigError` where the numbers of a descent (segment, share kept or forgotten, momentum, step, limit) make no sense."""
    if config.segment_length < 1:
        raise ConfigError(f"segment_length must be at least 1, got {config.segment_length}")
    for name in ("forget", "keep", "momentum"):
        value = getattr(config, name, None)
        starts = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(0 < start < 1 for start in starts):
            raise ConfigError(f"{name} is where a sigmoid starts: give a number inside (0, 1), or None to do without; got {value}")
    if not 0 < config.step < config.step_limit:
        raise ConfigError(f"step must lie between 0 and step_limit={config.step_limit}, got {config.step}")
    if config.gradient_limit is not None and config.gradient_limit <= 0:
        raise ConfigError(f"gradient_limit must be above 0, or None for no limit, got {config.gradient_limit}")


def logit(share: float | tuple[float, ...]) -> float | tuple[float, ...]:
    """Where a sigmoid is `share`, or each of them."""
    return tuple(math.log(z / (1 - z)) for z in share) if isinstance(share, tuple) else math.log(share / (1 - share))


def precise(t: Tensor) -> torch.dtype:
    """The dtype in which what is derived from `t` recurs: float32 at least."""
    return torch.promote_types(t.dtype, torch.float32)


class Associations(nn.Module):
    """x [B, T, D] to queries, keys and values [B, H, T, K], and the convolution's tail after x. K is D / H if it is not given."""

    def __init__(self, d_model: int, n_heads: int, conv_width: int, head_size: int | None = None) -> None:
        super().__init__()
        self.n_heads = n_heads
        width = d_model if head_size is None else n_heads * head_size
        self.inputs = Linear(d_model, 3 * width, bias=False)
        self.conv = ShortConv(3 * width, conv_width, silu=True)
        nn.init.normal_(self.inputs.weight, std=d_model**-0.5)
        with torch.no_grad():  # it begins as the identity, with a little of the tokens before
            self.conv.weight.mul_(0.2)[:, -1] += 1.0

    def init_tail(self, batch_size: int) -> Float[Tensor, "B W C"]:
        return self.conv.init_tail(batch_size)

    def forward(self, x: Float[Tensor, "B T D"], tail: Float[Tensor, "B W C"]) -> tuple[Keys, Keys, Keys, Float[Tensor, "B W C"]]:
        mixed, tail = self.conv(self.inputs(x), tail)
        qkv = mixed.to(precise(self.inputs.weight)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return unit(q), unit(k), v.contiguous(), tail


class Logits(nn.Module):
    """x [B, T, D] to n logits a head, each [B, H, T]; they begin near the values that are given, one for all heads or for each."""

    def __init__(self, d_model: int, n_heads: int, starts: Sequence[float | tuple[float, ...]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(starts), n_heads, d_model) * 0.1 * d_model**-0.5)
        self.bias = nn.Parameter(torch.stack([torch.tensor(start, dtype=torch.float32).expand(n_heads) for start in starts]))

    def forward(self, x: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B H T"], ...]:
        dtype = precise(self.weight)
        with unrounded(x):
            logits = linear(x.to(dtype), self.weight.flatten(0, 1).to(dtype), self.bias.flatten().to(dtype))
        return logits.mT.unflatten(1, self.bias.shape).unbind(1)


class Readout(nn.Module):
    """What was read, normalised by head, gated by the token that asked, and mixed."""

    def __init__(self, d_model: int, n_heads: int, head_size: int | None = None) -> None:
        super().__init__()
        width = d_model if head_size is None else n_heads * head_size
        self.norm = HeadNorm(width // n_heads, eps=1e-5)
        self.gate = Linear(d_model, width, bias=False)
        self.out = Linear(width, d_model, bias=False)
        for layer in (self.gate, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, o: Float[Tensor, "B H T V"], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        o = self.norm(o.transpose(1, 2)).flatten(2)
        return self.out(o.to(x.dtype) * F.silu(self.gate(x)))


def first_weights(network: Network, n_heads: int) -> nn.ParameterList:
    """Learned weights of a stream that has read nothing, of every head: [H, I, O] or [H, O].

    Entries of standard deviation I^-1/2, gains of one. A network without a norm at its end begins by saying nothing: its last
    matrix is zero (through a norm, zero would have no gradient).
    """
    weights = []
    for layer in network.fast:
        shape = (n_heads, *layer.shape)
        weights.append(torch.ones(shape) if isinstance(layer, Norm) else torch.randn(shape) * layer.inputs**-0.5)
    if not isinstance(network.fast[-1], Norm):
        weights[-1].zero_()
    return nn.ParameterList(weights)


def first_state(first: nn.ParameterList, batch_size: int, *, momentum: bool) -> FastState:
    """The state of streams that have read nothing: the learned weights for each, at the first token of a segment."""
    weights = tuple(W.to(precise(W), copy=True).expand(batch_size, *W.shape) for W in first)
    carried = tuple(empty(W, *W.shape) for W in weights) if momentum else ()
    return FastState(weights, carried, weights, torch.zeros(batch_size, dtype=torch.int64))

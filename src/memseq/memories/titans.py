"""Titans' neural memory (LMM): a small network that learns, while it reads, to say a token's value when given its key.

Source: Titans (Behrouz et al., arXiv:2501.00663); sizes and first values that the paper leaves open are the fields of the config.

    q, k, v = silu(conv(W x))                               q and k of length one (`layers/fast_weights.py`)
    alpha, eta, theta = sigmoid(W_r x + b_r)                forget, momentum, step (times `step_limit`): by token and head
    u_t = gradient of 1/2 |M(k_t) - v_t|^2 in the weights   at the weights of the open segment's first token
    S_t = eta_t S_{t-1} - theta_t u_t
    W_t = (1 - alpha_t) W_{t-1} + S_t                       retention "first": W* + (1 - alpha_t) (W_{t-1} - W*) + S_t
    y_t = W_O (rms(M_{W_t}(q_t)) * silu(W_g x_t))

M is a perceptron of `depth` layers (`form`: as it is, or on a residual path); its first weights W* are learned. Forgetting draws the
weights to zero, as published, which for two layers and more is a saddle: where all of them are small none has a gradient, and what is
forgotten soon can be learned no more. With `retention="first"` it draws them to W*. Computed in the dual
form (`ops/titans.py`): matrix products over a chunk, no weights by token. Nothing a stream reads makes it diverge: a key has
length one, a token's gradient is softly bounded by `gradient_limit`, and gates lie inside (0, 1).

With `steps="segment"` the weights move once a segment, by all of its gradients, with the mean of its gates (`ops/titans_segments.py`): a
cheaper function, that of the package titans-pytorch, in which a token is not read before its segment is full.

State: weights and momentum, 8 B H |W| bytes, and inside a segment its anchor (or what it gathered), 4 B H |W| more; the convolution's
last inputs.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.contract import Memory, empty
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.fast_weights import Associations, Logits, Readout, check_descent, first_state, first_weights, logit, precise
from memseq.layers.sizes import check_at_least_one
from memseq.ops.fast_network import Network, mlp
from memseq.ops.titans import FastState, Gates, titans_chunkwise, titans_online_linear
from memseq.ops.titans_segments import GatheredState, SegmentGates, segments_chunkwise

__all__ = ["TitansConfig", "TitansMemory", "TitansState"]


class TitansState(NamedTuple):
    fast: FastState | GatheredState  # weights, momentum, anchor or what was gathered, and the position in the segment, on the host
    tail: Float[Tensor, "B W C"]  # what the convolution still sees


@dataclass(frozen=True, kw_only=True)
class TitansConfig:
    d_model: int
    n_heads: int = 4
    head_size: int | None = None  # of keys and values; None: d_model / n_heads
    segment_length: int = 64  # b: tokens whose gradients are taken at one anchor; part of the function
    steps: Literal["token", "segment"] = "token"  # whether the weights move at every token, or once a segment
    depth: int = 2  # layers of M; 1 is a matrix
    expansion: int = 4  # hidden units of M, in the size of a head
    activation: Literal["gelu", "silu", "tanh"] = "gelu"
    form: Literal["plain", "residual", "normed"] = "plain"  # of M(k): mlp(k), k + mlp(k), or k + gain * norm(mlp(k))
    bias: bool = False  # of M's layers
    conv_width: int = 4  # 1: no convolution
    forget: float | tuple[float, ...] | None = 0.01  # alpha at the start, of all heads or of each; None: nothing is ever forgotten
    retention: Literal["zero", "first"] = "zero"  # what forgetting draws the weights to: nothing, or those that a stream begins with
    momentum: float | None = 0.6  # eta at the start; None: S_t = -theta_t u_t
    step: float = 0.1  # theta at the start
    step_limit: float = 1.0  # the largest theta
    gradient_limit: float | None = 4.0  # of a token's gradient, over all weights of M; None: none
    chunk_size: int = 64  # speed only

    def __post_init__(self) -> None:
        if self.head_size is None:
            check_heads(self.d_model, self.n_heads, 0.0)
        check_at_least_one(self, "d_model", "n_heads", "head_size", "depth", "expansion", "conv_width", "chunk_size")
        if self.activation not in ("gelu", "silu", "tanh"):
            raise ConfigError(f"activation must be 'gelu', 'silu' or 'tanh', got {self.activation!r}")
        if self.form not in ("plain", "residual", "normed"):
            raise ConfigError(f"form must be 'plain', 'residual' or 'normed', got {self.form!r}")
        if self.steps not in ("token", "segment"):
            raise ConfigError(f"steps must be 'token' or 'segment', got {self.steps!r}")
        if self.retention not in ("zero", "first"):
            raise ConfigError(f"retention must be 'zero' or 'first', got {self.retention!r}")
        if isinstance(self.forget, tuple) and len(self.forget) != self.n_heads:
            raise ConfigError(f"forget must be one number for all heads or one for each of n_heads={self.n_heads}, got {self.forget}")
        check_descent(self)

    @property
    def key_size(self) -> int:
        """K, numbers in a key and in a value of a head."""
        return self.d_model // self.n_heads if self.head_size is None else self.head_size

    @property
    def network(self) -> Network:
        """M, one head of it."""
        K = self.key_size
        sizes = (K, *[self.expansion * K] * (self.depth - 1), K)
        return mlp(sizes, activation=self.activation, bias=self.bias, norm=self.form == "normed", residual=self.form != "plain")

    @classmethod
    def of_size(cls, size: Any) -> "TitansConfig":
        """The memory of a `presets.Size`; a segment of M is at most 64 tokens, where the dual form is fastest."""
        return cls(d_model=size.d_model, n_heads=size.n_heads, segment_length=min(64, size.segment_length))

    def build(self) -> "TitansMemory":
        return TitansMemory(self)


class TitansMemory(Memory[TitansState]):
    def __init__(self, config: TitansConfig) -> None:
        super().__init__()
        self.config, self.network = config, config.network
        self.associate = Associations(config.d_model, config.n_heads, config.conv_width, config.head_size)
        starts = [z for z in (config.forget, config.momentum, config.step / config.step_limit) if z is not None]
        self.rates = Logits(config.d_model, config.n_heads, [logit(z) for z in starts])
        self.first = first_weights(self.network, config.n_heads)
        self.readout = Readout(config.d_model, config.n_heads, config.head_size)

    def init_state(self, batch_size: int) -> TitansState:
        c = self.config
        fast: Any = first_state(self.first, batch_size, momentum=c.momentum is not None)
        if c.steps == "segment":
            n_gates = (c.forget is not None) + (c.momentum is not None)
            nothing = tuple(empty(W, *W.shape) for W in fast.weights)
            fast = GatheredState(
                fast.weights, fast.momentum, nothing, fast.weights[0].new_zeros(batch_size, c.n_heads, n_gates), fast.position
            )
        return TitansState(fast, self.associate.init_tail(batch_size))

    def forward(self, x: Float[Tensor, "B T D"], state: TitansState) -> tuple[Float[Tensor, "B T D"], TitansState]:
        o, after = self._learn(x, state, reading=True)
        return self.readout(o, x), after

    def advance(self, x: Float[Tensor, "B T D"], state: TitansState) -> TitansState:
        self.check_input(x, state)
        return self._learn(x, state, reading=False)[1]

    def gates(self, x: Float[Tensor, "B T D"]) -> Gates:
        """What each token of x forgets, carries on and steps."""
        c, logits = self.config, list(self.rates(x))
        step = c.step_limit * logits.pop().sigmoid()
        momentum = None if c.momentum is None else F.logsigmoid(logits.pop())
        return Gates(torch.zeros_like(step) if c.forget is None else F.logsigmoid(-logits.pop()), momentum, step)

    def segment_gates(self, x: Float[Tensor, "B T D"]) -> SegmentGates:
        """What each token of x says about forgetting and momentum of its segment, before the sigmoid, and its step."""
        c, logits = self.config, list(self.rates(x))
        step = c.step_limit * logits.pop().sigmoid()
        momentum = None if c.momentum is None else logits.pop()
        return SegmentGates(None if c.forget is None else logits.pop(), momentum, step)

    def _learn(self, x: Tensor, state: TitansState, *, reading: bool) -> tuple[Tensor, TitansState]:
        c = self.config
        q, k, v, tail = self.associate(x, state.tail)
        asked = q if reading else None
        home = tuple(W.to(precise(W)) for W in self.first) if c.retention == "first" and c.forget is not None else None
        if isinstance(state.fast, GatheredState):
            options: dict[str, Any] = {"segment_length": c.segment_length, "limit": c.gradient_limit, "home": home}
            o, fast = segments_chunkwise(self.network, asked, k, v, self.segment_gates(x), state.fast, **options)
            return o, TitansState(fast, tail)
        gates = self.gates(x)
        if self._solvable:
            o, fast = titans_online_linear(asked, k, v, gates, state.fast, chunk_size=c.chunk_size, home=home)
        else:
            o, fast = titans_chunkwise(
                self.network,
                asked,
                k,
                v,
                gates,
                state.fast,
                segment_length=c.segment_length,
                chunk_size=c.chunk_size,
                limit=c.gradient_limit,
                home=home,
            )
        return o, TitansState(fast, tail)

    @property
    def _solvable(self) -> bool:
        """The strict online rule on a matrix: the errors of a chunk are the solution of a triangular system."""
        c = self.config
        return c.segment_length == 1 and c.depth == 1 and c.form == "plain" and not c.bias and c.gradient_limit is None

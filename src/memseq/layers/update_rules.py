"""How a token is written into a matrix: the rules of the linear family as configs, for memories that keep several matrices.

    AdditiveRule      S_t = S_(t-1) + k_t^T v_t                                             linear attention
    ChannelRule       S_t = Diag(w_t) S_(t-1) + k_t^T v_t                                   GLA
    DeltaRule         S_t = (I - b_t k_t^T k_t) S_(t-1) + b_t k_t^T v_t                     DeltaNet
    GatedDeltaRule    S_t = a_t (I - b_t k_t^T k_t) S_(t-1) + b_t k_t^T v_t                 Gated DeltaNet
    y_t = q_t S_t

A rule takes k, v and its own gates from a token, `size` numbers a head and memory, and says which op reads. Gates are such that zero
changes nothing (b = 0, log a = 0, log w = 0): a token made `silent` leaves the matrix as it was, bit for bit.

`build(n_heads)` makes the module that holds what a rule learns beside the projections (the rates of decay); several matrices of one
layer share it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.layers.conv_heads import check_strength
from memseq.layers.decay_gate import DecayGate
from memseq.layers.head_norm import unit
from memseq.ops.channel_decay import gla_chunkwise
from memseq.ops.linear_attention import decay_chunkwise, delta_chunkwise

__all__ = ["AdditiveRule", "ChannelRule", "DeltaRule", "GatedDeltaRule", "Rule", "UpdateRule"]

Keys = Float[Tensor, "N H T K"]
Values = Float[Tensor, "N H T V"]
Gates = Float[Tensor, "N H T G"]
Matrix = Float[Tensor, "N H K V"]


class UpdateRule(nn.Module):
    """A rule at work. Subclasses say what a query, a key and the gates are, and what reads."""

    def queries(self, q: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """In float32 at least, with the factor 1 / sqrt(K)."""
        return self.keys(q) * q.shape[-1] ** -0.5

    def keys(self, k: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        """In float32 at least."""
        return k.to(torch.promote_types(k.dtype, torch.float32))

    def gates(self, logits: Gates) -> Gates:
        """What the token decides, in float32 at least."""
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def silent(self, k: Keys, gates: Gates, keep: Float[Tensor, "N 1 T 1"]) -> tuple[Keys, Gates]:
        """Keys and gates of tokens that are kept (1), and of such as change nothing (0)."""
        return k * keep, gates * keep

    def read(self, q: Keys, k: Keys, v: Values, gates: Gates, S: Matrix, chunk_size: int) -> tuple[Values, Matrix]:
        raise TypeError(f"{type(self).__name__} must define read(q, k, v, gates, S, chunk_size)")


class Rule(Protocol):
    """The config of a rule."""

    def size(self, key_size: int) -> int:
        """Numbers that a token gives a head, beside k and v."""
        ...

    def build(self, n_heads: int) -> UpdateRule: ...


@dataclass(frozen=True, kw_only=True)
class AdditiveRule:
    """Nothing is erased and nothing fades."""

    def size(self, key_size: int) -> int:
        return 0

    def build(self, n_heads: int) -> UpdateRule:
        return _Additive()


class _Additive(UpdateRule):
    def read(self, q: Keys, k: Keys, v: Values, gates: Gates, S: Matrix, chunk_size: int) -> tuple[Values, Matrix]:
        return decay_chunkwise(q, k, v, q.new_zeros(()).expand(q.shape[:3]), S, chunk_size=chunk_size)


@dataclass(frozen=True, kw_only=True)
class ChannelRule:
    """Every channel of the keys fades at a rate of its own, log w = logsigmoid(.) / temper."""

    temper: float = 16.0

    def __post_init__(self) -> None:
        if self.temper <= 0:
            raise ConfigError(f"temper must be above zero, got {self.temper}; published is 16, a decay of 0.958 where the logit is 0")

    def size(self, key_size: int) -> int:
        return key_size

    def build(self, n_heads: int) -> UpdateRule:
        return _Channel(self.temper)


class _Channel(UpdateRule):
    def __init__(self, temper: float) -> None:
        super().__init__()
        self.temper = temper

    def gates(self, logits: Gates) -> Gates:
        return F.logsigmoid(super().gates(logits)) / self.temper

    def read(self, q: Keys, k: Keys, v: Values, gates: Gates, S: Matrix, chunk_size: int) -> tuple[Values, Matrix]:
        return gla_chunkwise(q, k, v, gates, S, chunk_size=chunk_size)


@dataclass(frozen=True, kw_only=True)
class DeltaRule:
    """What a key retrieves is replaced; nothing fades."""

    strength: float = 1.0  # of b_t; up to 2, where a write may turn what it erases around

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def size(self, key_size: int) -> int:
        return 1

    def build(self, n_heads: int) -> UpdateRule:
        return _Delta(self.strength)


class _Delta(UpdateRule):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def keys(self, k: Float[Tensor, "... K"]) -> Float[Tensor, "... K"]:
        return unit(k)

    def gates(self, logits: Gates) -> Gates:
        return self.strength * super().gates(logits).sigmoid()

    def silent(self, k: Keys, gates: Gates, keep: Float[Tensor, "N 1 T 1"]) -> tuple[Keys, Gates]:
        return k, gates * keep  # b = 0 writes nothing, whatever the key

    def read(self, q: Keys, k: Keys, v: Values, gates: Gates, S: Matrix, chunk_size: int) -> tuple[Values, Matrix]:
        still = q.new_zeros(()).expand(q.shape[:3])
        return delta_chunkwise(q, k, v, gates[..., 0], still, S, chunk_size=chunk_size)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaRule:
    """What a key retrieves is replaced, and a gate lets all of it fade."""

    strength: float = 1.0  # of b_t; up to 2, where a write may turn what it erases around

    def __post_init__(self) -> None:
        check_strength(self.strength)

    def size(self, key_size: int) -> int:
        return 2

    def build(self, n_heads: int) -> UpdateRule:
        return _GatedDelta(self.strength, n_heads)


class _GatedDelta(_Delta):
    def __init__(self, strength: float, n_heads: int) -> None:
        super().__init__(strength)
        self.decay = DecayGate(n_heads, rates=(0.01, 16.0))

    def gates(self, logits: Gates) -> Gates:
        log_a = self.decay(logits[..., 1].transpose(1, 2))[1].transpose(1, 2)
        return torch.cat([super().gates(logits[..., :1]), log_a[..., None]], dim=-1)

    def read(self, q: Keys, k: Keys, v: Values, gates: Gates, S: Matrix, chunk_size: int) -> tuple[Values, Matrix]:
        return delta_chunkwise(q, k, v, gates[..., 0], gates[..., 1], S, chunk_size=chunk_size)

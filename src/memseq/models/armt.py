"""ARMT, the Associative Recurrent Memory Transformer: a matrix at every layer, written once a segment by memory vectors.

Source: Rodkin, Kuratov, Bulatov, Burtsev, "Associative Recurrent Memory Transformer" (arXiv:2407.04841). Any `Backbone` serves
(`models/backbone.py`); at its layer l, with A_l and z_l as the earlier segments left them:

    h <- h + (q^T A_l) / (q^T z_l + eps)          before the layer, for tokens and memory vectors alike;  q = phi(W_q h)
    k_i, v_i, b_i = phi(W_k m_i), W_v m_i, sigmoid(w_b m_i + c)     after it, of the N memory vectors m_i at the segment's end
    A_l, z_l <- delta write of all (k_i, v_i, b_i)                   `ops/associative.py`

The N vectors stand at the end of a segment only, and enter it as learned parameters each time: what passes from segment to
segment are the matrices. phi is DPFP-nu over d_m features. W_v starts at zero: a new model is its backbone.

State: 4 B l F (D + 1) bytes in float32 with F = 2 nu d_m, and the backbone's cache of the open segment, empty at a border.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.backbone import Backbone, build_backbone
from memseq.models.segments import OverBackbone, SegmentModel, check_segments
from memseq.models.stack import StackConfig
from memseq.ops.associative import EPSILON, dpfp, read, write
from memseq.state import State

__all__ = ["ARMT", "ARMTConfig", "ARMTState"]


class ARMTState(NamedTuple):
    matrices: Float[Tensor, "B l F D"]  # A of every layer
    norms: Float[Tensor, "B l F"]  # z of every layer
    cache: State  # the backbone's, of the open segment
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class ARMTConfig(OverBackbone):
    backbone: Any  # a StackConfig, or the config of a pretrained model
    n_slots: int = 8  # N, memory vectors that write
    segment_length: int = 64  # L, tokens; the backbone reads L + N inputs
    key_size: int = 32  # d_m
    nu: int = 3
    epsilon: float = EPSILON  # what a query has to meet to read more than half; larger, and gradients stay small (`ops/associative.py`)
    mask: str = "causal"  # or "paper": memory vectors see each other, as in RMT

    def __post_init__(self) -> None:
        check_segments(self)
        if self.n_slots < 1:
            raise ConfigError("n_slots=0 writes nothing; use at least 1, or RMTConfig(n_slots=0) for the backbone alone")
        if self.key_size < 1 or not 1 <= self.nu < 2 * self.key_size:
            raise ConfigError(f"nu={self.nu} must lie in 1 to 2 key_size - 1 = {2 * self.key_size - 1}")
        if not self.epsilon > 0:
            raise ConfigError(f"epsilon={self.epsilon} must be above 0: a query that meets nothing divides by it")
        if self.mask not in ("paper", "causal"):
            raise ConfigError(f"mask must be 'paper' or 'causal', got {self.mask!r}")

    @property
    def features(self) -> int:
        """F, rows of a matrix."""
        return 2 * self.nu * self.key_size

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "ARMTConfig":
        """The model of a `presets.Size`: attention inside the segment, a matrix a layer beyond it."""
        inputs = size.segment_length + size.n_slots
        layer = SegmentAttentionConfig(d_model=size.d_model, n_heads=size.n_heads, segment_length=inputs)
        backbone = StackConfig(vocab_size=vocab_size, d_model=size.d_model, layers=size.n_layers * (layer,))
        return cls(backbone=backbone, n_slots=size.n_slots, segment_length=size.segment_length)

    @classmethod
    def around(cls, backbone: Any, **settings: Any) -> "ARMTConfig":
        """What suits a pretrained network: reads whose gradients are no larger than its own."""
        suited: dict[str, Any] = {"epsilon": 1.0}
        return cls(backbone=backbone, **suited | settings)

    def build(self, backbone: Backbone | None = None) -> "ARMT":
        """The model, around `backbone` where one is given (it is not copied)."""
        return ARMT(self, build_backbone(self.backbone) if backbone is None else backbone)


class Association(nn.Module):
    """The projections of one layer: what it asks its matrix for, and what it stores there."""

    def __init__(self, config: ARMTConfig) -> None:
        super().__init__()
        D, self.nu, self.epsilon = config.d_model, config.nu, config.epsilon
        self.query = Linear(D, config.key_size, bias=False)
        self.key = Linear(D, config.key_size, bias=False)
        self.value = Linear(D, D, bias=False)
        self.beta = nn.Linear(D, 1)
        nn.init.zeros_(self.value.weight)

    def read(self, x: Float[Tensor, "B T D"], A: Float[Tensor, "B F D"], z: Float[Tensor, "B F"]) -> Float[Tensor, "B T D"]:
        """x with what is stored for it; the division wants float32 at least, under autocast too."""
        with torch.autocast(x.device.type, enabled=False):
            q = dpfp(self.query(x.to(self.query.weight.dtype)).to(A.dtype), self.nu)
            return x + read(q, A, z, self.epsilon).to(x.dtype)

    def write(
        self, m: Float[Tensor, "B N D"], A: Float[Tensor, "B F D"], z: Float[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B F D"], Float[Tensor, "B F"]]:
        with torch.autocast(m.device.type, enabled=False):
            m = m.to(self.key.weight.dtype)
            k, v = dpfp(self.key(m).to(A.dtype), self.nu), self.value(m).to(A.dtype)
            return write(k, v, self.beta(m)[..., 0].sigmoid().to(A.dtype), A, z, self.epsilon)


class _Visit:
    """One reading of a piece: every layer's matrix is read, and written where the segment ends."""

    def __init__(self, layers: nn.ModuleList, state: ARMTState, writers: int) -> None:
        self.layers, self.matrices, self.norms, self.writers = layers, state.matrices, state.norms, writers
        self.written: list[tuple[Tensor, Tensor]] = []

    def before(self, layer: int, x: Tensor) -> Tensor:
        return self.layers[layer].read(x, self.matrices[:, layer], self.norms[:, layer])

    def after(self, layer: int, x: Tensor) -> None:
        if self.writers:
            self.written.append(self.layers[layer].write(x[:, -self.writers :], self.matrices[:, layer], self.norms[:, layer]))


class ARMT(SegmentModel[ARMTState]):
    def __init__(self, config: ARMTConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        backbone.check_length(self.inputs)
        if config.mask == "paper" and not backbone.takes_mask:
            raise ConfigError(f"{type(config.backbone).__name__} builds a network that is causal and takes no mask; use mask='causal'")
        self.slots = nn.Parameter(backbone.new_vectors(config.n_slots))
        self.associations = nn.ModuleList(Association(config).to(self.slots) for _ in range(backbone.n_layers))

    @property
    def inputs(self) -> int:
        """Vectors that the backbone reads in a segment: tokens, and the memory vectors that write."""
        return self.config.segment_length + self.config.n_slots

    def init_state(self, batch_size: int) -> ARMTState:
        c, weight = self.config, self.slots
        dtype = torch.promote_types(weight.dtype, torch.float32)
        layers, F, D = self.backbone.n_layers, c.features, c.d_model
        matrices = weight.new_zeros(batch_size, layers, F, D, dtype=dtype)
        norms = weight.new_zeros(batch_size, layers, F, dtype=dtype)
        return ARMTState(matrices, norms, self.backbone.init_cache(batch_size, self.inputs), torch.zeros(batch_size, dtype=torch.int64))

    def read_piece(
        self, tokens: Int[Tensor, "B n"], state: ARMTState, *, opens: bool, closes: bool
    ) -> tuple[Float[Tensor, "B n D"], ARMTState]:
        x, n = self.backbone.embed(tokens), tokens.shape[1]
        if closes:
            x = torch.cat([x, self.slots.to(x.dtype).expand(len(x), -1, -1)], dim=1)
        visit = _Visit(self.associations, state, self.config.n_slots if closes else 0)
        whole = opens and closes  # nothing is to be kept of a segment that is read at once
        mask = self._mask(int(state.position[0]), x.shape[1], x.device) if closes else None
        h, cache = self.backbone.read(x, None if whole else state.cache, mask=mask, visitor=visit)
        if not closes:
            return h, state._replace(cache=cache, position=state.position + n)
        matrices, norms = (torch.stack(parts, dim=1) for parts in zip(*visit.written, strict=True))
        return h[:, :n], ARMTState(matrices, norms, self.backbone.init_cache(len(x), self.inputs), torch.zeros_like(state.position))

    def _mask(self, start: int, n: int, device: torch.device) -> Bool[Tensor, "n S"] | None:
        """Causal, but memory vectors see all of themselves; None where that is no difference."""
        if self.config.mask == "causal" or self.config.n_slots < 2:
            return None
        seen = torch.arange(start + n, device=device)
        own, end = seen[start:, None], self.config.segment_length
        return (seen <= own) | (own >= end) & (seen >= end)

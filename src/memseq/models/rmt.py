"""RMT, the Recurrent Memory Transformer: vectors before and after every segment, and the last become the next first.

Source: Bulatov, Kuratov, Burtsev, "Recurrent Memory Transformer" (arXiv:2207.06881) and "Scaling Transformer to 1M tokens and beyond
with RMT" (arXiv:2304.11062). The network is not changed: any `Backbone` serves (`models/backbone.py`), a pretrained one too.

    [. ; h ; W] = backbone([F(M_s) ; E[tokens] ; F(M_s)])     N memory vectors, L tokens, N memory vectors
    M_{s+1}     = W                                           what the backbone made of the last N, after its final norm
    logits      = head(h)

M_0 is learned. The first copy is read by the tokens, the last sees the whole segment and is the write; it changes nothing that
the tokens see, so a stream is read token by token and the write runs when the segment is full.

mask = "paper": memory vectors of one copy see each other; everything else is causal. "causal": all is, as for pretrained models.
feed = "raw": F(M) = M (paper). "normed": F(M) = g * M / rms(M) with a learned gain that starts at the size of an embedding, for
pretrained models, whose embeddings are far smaller than what leaves their last norm.

noise > 0: while training, what passes a border is M + noise * rms(M) * xi with xi ~ N(0, 1), so that the network learns to clean up
what it carries; then what it keeps outlasts by far the segments it was trained on (`recipes/rmt.py`).

State: the memory, 4 B N D bytes in float32, and the backbone's cache of the open segment, which is empty at a border.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.backbone import Backbone, build_backbone
from memseq.models.segments import OverBackbone, SegmentModel, as_large_as, check_segments
from memseq.models.stack import StackConfig
from memseq.state import State

__all__ = ["RMT", "RMTConfig", "RMTState"]


class RMTState(NamedTuple):
    memory: Float[Tensor, "B N D"]  # M_s, what the open segment reads
    cache: State  # the backbone's, of the open segment
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class RMTConfig(OverBackbone):
    backbone: Any  # a StackConfig, or the config of a pretrained model
    n_slots: int = 8  # N; 0 is the backbone alone, every segment by itself
    segment_length: int = 64  # L, tokens; the backbone reads L + 2 N inputs
    mask: str = "paper"  # or "causal"
    feed: str = "raw"  # or "normed"
    noise: float = 0.0  # while training: of what passes a border, relative to its size

    def __post_init__(self) -> None:
        check_segments(self)
        if self.mask not in ("paper", "causal"):
            raise ConfigError(f"mask must be 'paper' or 'causal', got {self.mask!r}")
        if self.feed not in ("raw", "normed"):
            raise ConfigError(f"feed must be 'raw' or 'normed', got {self.feed!r}")
        if self.noise < 0:
            raise ConfigError(f"noise must be 0 or more, got {self.noise}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "RMTConfig":
        """The model of a `presets.Size`: attention inside the segment, memory vectors beyond it."""
        inputs = size.segment_length + 2 * size.n_slots
        layer = SegmentAttentionConfig(d_model=size.d_model, n_heads=size.n_heads, segment_length=inputs)
        backbone = StackConfig(vocab_size=vocab_size, d_model=size.d_model, layers=size.n_layers * (layer,))
        return cls(backbone=backbone, n_slots=size.n_slots, segment_length=size.segment_length)

    @classmethod
    def around(cls, backbone: Any, **settings: Any) -> "RMTConfig":
        """What suits a pretrained network: causal, as it was trained, and memory vectors as large as its embeddings."""
        suited: dict[str, Any] = {"mask": "causal", "feed": "normed"}
        return cls(backbone=backbone, **suited | settings)

    def build(self, backbone: Backbone | None = None) -> "RMT":
        """The model, around `backbone` where one is given (it is not copied)."""
        return RMT(self, build_backbone(self.backbone) if backbone is None else backbone)


class RMT(SegmentModel[RMTState]):
    def __init__(self, config: RMTConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        backbone.check_length(self.inputs)
        if config.mask == "paper" and config.n_slots and not backbone.takes_mask:
            raise ConfigError(f"{type(config.backbone).__name__} builds a network that is causal and takes no mask; use mask='causal'")
        self.initial = nn.Parameter(backbone.new_vectors(config.n_slots))  # M_0
        if config.feed == "normed":
            self.gain = nn.Parameter(backbone.embedding.weight.detach().to(self.initial).std().expand(config.d_model).clone())

    @property
    def inputs(self) -> int:
        """Vectors that the backbone reads in a segment: tokens and both copies of the memory."""
        return self.config.segment_length + 2 * self.config.n_slots

    def init_state(self, batch_size: int) -> RMTState:
        memory = self.initial.expand(batch_size, -1, -1)
        return RMTState(memory, self.backbone.init_cache(batch_size, self.inputs), torch.zeros(batch_size, dtype=torch.int64))

    def read_piece(
        self, tokens: Int[Tensor, "B n"], state: RMTState, *, opens: bool, closes: bool
    ) -> tuple[Float[Tensor, "B n D"], RMTState]:
        x = self.backbone.embed(tokens)
        memory = self._fed(state.memory).to(x.dtype)
        inputs = torch.cat([memory] * opens + [x] + [memory] * closes, dim=1)
        first = self.config.n_slots if opens else 0
        mask = self._mask(int(state.position[0]), inputs.shape[1], opens, closes, x.device)
        whole = opens and closes  # nothing is to be kept of a segment that is read at once
        h, cache = self.backbone.read(inputs, None if whole else state.cache, mask=mask)
        y, end = h[:, first : first + x.shape[1]], first + x.shape[1]
        if not closes:
            return y, RMTState(state.memory, cache, state.position + x.shape[1])
        new = self.init_state(len(x))
        return y, new._replace(memory=self._passed(h[:, end:].to(state.memory.dtype, copy=True)))

    def _passed(self, memory: Tensor) -> Tensor:
        """What goes over the border."""
        if not self.training or not self.config.noise:
            return memory
        size = memory.detach().square().mean(-1, keepdim=True).sqrt()
        return memory + self.config.noise * size * torch.randn_like(memory)

    def _fed(self, memory: Tensor) -> Tensor:
        """The memory as it stands among embeddings."""
        return memory if self.config.feed == "raw" else as_large_as(self.gain, memory)

    def _mask(self, position: int, n: int, opens: bool, closes: bool, device: torch.device) -> Bool[Tensor, "n S"] | None:
        """Causal, but a copy of the memory sees the whole of itself; None where that is no difference. Such rows are at one position."""
        N = self.config.n_slots
        if self.config.mask == "causal" or N < 2 or not (opens or closes):
            return None
        start = 0 if opens else N + position
        seen = torch.arange(start + n, device=device)
        own = seen[start:, None]
        mask = seen <= own
        if opens:
            mask |= (own < N) & (seen < N)
        if closes:
            end = N + self.config.segment_length
            mask |= (own >= end) & (seen >= end)
        return mask

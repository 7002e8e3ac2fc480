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

begin = "learned": the first segment reads M_0 (paper). "nothing": it reads no memory vectors and only writes, from M_0, so that its
logits are the backbone's: for pretrained models, to which vectors that say nothing are text such as they never saw.

noise > 0: while training, what passes a border is M + noise * rms(M) * xi with xi ~ N(0, 1), so that the network learns to clean up
what it carries; then what it keeps outlasts by far the segments it was trained on (`recipes/rmt.py`).

State: the memory, 4 B N D bytes in float32, whether it was written, and the backbone's cache of the open segment, empty at a border.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.phases import by_phase
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
    written: Int[Tensor, "B"]  # 1 once a segment has written the memory, on the host


@dataclass(frozen=True, kw_only=True)
class RMTConfig(OverBackbone):
    backbone: Any  # a StackConfig, or the config of a pretrained model
    n_slots: int = 8  # N; 0 is the backbone alone, every segment by itself
    segment_length: int = 64  # L, tokens; the backbone reads L + 2 N inputs
    mask: str = "paper"  # or "causal"
    feed: str = "raw"  # or "normed"
    begin: str = "learned"  # or "nothing": what the first segment reads
    noise: float = 0.0  # while training: of what passes a border, relative to its size

    def __post_init__(self) -> None:
        check_segments(self)
        if self.mask not in ("paper", "causal"):
            raise ConfigError(f"mask must be 'paper' or 'causal', got {self.mask!r}")
        if self.feed not in ("raw", "normed"):
            raise ConfigError(f"feed must be 'raw' or 'normed', got {self.feed!r}")
        if self.begin not in ("learned", "nothing"):
            raise ConfigError(f"begin must be 'learned' or 'nothing', got {self.begin!r}")
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
        """What suits a pretrained network: causal, as it was trained, vectors as large as its embeddings, and none that say nothing."""
        suited: dict[str, Any] = {"mask": "causal", "feed": "normed", "begin": "nothing"}
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
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        return RMTState(memory, self.backbone.init_cache(batch_size, self.inputs), zeros, zeros)

    def read_rows(self, tokens: Int[Tensor, "B n"], state: RMTState) -> tuple[Float[Tensor, "B n D"], RMTState]:
        """Rows in the first segment of their stream are read apart where it reads less than the others."""
        if self.config.begin == "learned" or not self.config.n_slots:
            return super().read_rows(tokens, state)
        return by_phase(super().read_rows, tokens, state, state.written)

    def read_piece(
        self, tokens: Int[Tensor, "B n"], state: RMTState, *, opens: bool, closes: bool
    ) -> tuple[Float[Tensor, "B n D"], RMTState]:
        x = self.backbone.embed(tokens)
        memory = self._fed(state.memory).to(x.dtype)
        reads = self.config.n_slots if self.config.begin == "learned" or int(state.written[0]) else 0
        inputs = torch.cat([memory] * (opens and reads > 0) + [x] + [memory] * closes, dim=1)
        first = reads if opens else 0
        start = 0 if opens else reads + int(state.position[0])
        mask = self._mask(reads, start, inputs.shape[1], closes, x.device)
        whole = opens and closes  # nothing is to be kept of a segment that is read at once
        h, cache = self.backbone.read(inputs, None if whole else state.cache, mask=mask)
        y, end = h[:, first : first + x.shape[1]], first + x.shape[1]
        if not closes:
            return y, state._replace(cache=cache, position=state.position + x.shape[1])
        new = self.init_state(len(x))
        memory = self._passed(h[:, end:].to(state.memory.dtype, copy=True))
        return y, new._replace(memory=memory, written=torch.ones_like(new.written))

    def _passed(self, memory: Tensor) -> Tensor:
        """What goes over the border."""
        if not self.training or not self.config.noise:
            return memory
        size = memory.detach().square().mean(-1, keepdim=True).sqrt()
        return memory + self.config.noise * size * torch.randn_like(memory)

    def _fed(self, memory: Tensor) -> Tensor:
        """The memory as it stands among embeddings."""
        return memory if self.config.feed == "raw" else as_large_as(self.gain, memory)

    def _mask(self, reads: int, start: int, n: int, closes: bool, device: torch.device) -> Bool[Tensor, "n S"] | None:
        """Causal for n inputs from place `start` on, but a copy of the memory sees all of itself; None where that is no difference."""
        opens = reads > start
        if self.config.mask == "causal" or self.config.n_slots < 2 or not (opens or closes):
            return None
        seen = torch.arange(start + n, device=device)
        own = seen[start:, None]
        mask = seen <= own
        if opens:
            mask |= (own < reads) & (seen < reads)
        if closes:
            end = reads + self.config.segment_length
            mask |= (own >= end) & (seen >= end)
        return mask

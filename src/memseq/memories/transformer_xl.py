"""Transformer-XL: attention over a cache of earlier inputs and the current segment, with relative positions.

Source: Transformer-XL (Dai et al., arXiv:1901.02860), equations of §3.3; the mixer alone, norms and feedforward belong to the
model around it. Segments have L tokens; m holds the W inputs before the current segment, cut from their graph (SG).

    c = [SG(m); x_segment]                                        the context, W + i + 1 inputs at token i
    y_i = attention of x_i to c, by relative position             `layers/relative_segments.py`

visible = "sliding": j > i - W, every token sees W positions, itself included (the paper's `same_length`).
visible = "segment": all of c, W to W + L - 1 positions before i; the oldest leave at a segment's border only.
u and v are the layer's own. The gradient ends at a segment's border, wherever calls were cut; gradient = "full" lets it pass.

State: the inputs before the segment and those of the open segment, 4 B (W + L) D bytes in float32, 4 B W D at a border.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.errors import ConfigError
from memseq.layers.relative_segments import RelativeSegments, check_segments

__all__ = ["TransformerXLConfig", "TransformerXLMemory", "TransformerXLState"]


class TransformerXLState(NamedTuple):
    memory: Float[Tensor, "B W D"]  # inputs before the open segment, newest last
    opened: Float[Tensor, "B L D"]  # slot i holds input i of the open segment
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig:
    d_model: int
    n_heads: int = 4
    window: int = 128  # inputs kept before a segment; with visible="sliding" the positions a token sees, itself included
    segment_length: int = 64  # tokens between two borders, where the gradient ends
    visible: Literal["sliding", "segment"] = "sliding"
    gradient: Literal["stopped", "full"] = "stopped"  # at a border
    clamp: int | None = None  # distances above it share one embedding
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_segments(self)
        if self.visible not in ("sliding", "segment"):
            raise ConfigError(f"visible must be 'sliding' or 'segment', got {self.visible!r}")
        if self.window < (1 if self.visible == "sliding" else 0):
            raise ConfigError(f"window must be at least 1, or 0 with visible='segment' (independent segments), got {self.window}")

    def build(self) -> "TransformerXLMemory":
        return TransformerXLMemory(self)


class TransformerXLMemory(RelativeSegments[TransformerXLState]):
    def __init__(self, config: TransformerXLConfig) -> None:
        W, sliding = config.window, config.visible == "sliding"
        super().__init__(config, memory_size=W, count=W if sliding else W + config.segment_length, reach=W if sliding else None)

    def init_state(self, batch_size: int) -> TransformerXLState:
        return TransformerXLState(*self._nothing(batch_size), torch.zeros(batch_size, dtype=torch.int64))

    def _held(self, closed: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        return (closed * self.config.segment_length).clamp(max=self.config.window)

    def _close(self, state: TransformerXLState) -> TransformerXLState:
        """The segment's inputs join the memory, and the gradient ends here."""
        W, L = self.config.window, self.config.segment_length
        memory = torch.cat([state.memory[:, min(W, L) :], state.opened[:, max(0, L - W) :]], dim=1)
        if self.config.gradient == "stopped":
            memory = memory.detach()
        return TransformerXLState(memory, self._nothing(len(memory))[1], state.position)

"""Compressive Transformer: what falls off Transformer-XL's cache is compressed c to 1 and kept for longer.

Source: Compressive Transformers (Rae et al., arXiv:1911.05507); the mixer alone, as in `memories/transformer_xl.py`.
m holds the W inputs before the open segment of L tokens, cm the C compressed ones before those.

    y_i = attention of x_i to [cm; m; x_segment]                  by relative position; a compressed input counts as one
    old = the L oldest of [m; x_segment], at a segment's border   f: convolution of width and stride c, or a pool
    m'  = the W newest of them,   cm' = the C newest of [cm; f(old)]
    aux = sum_i ||Att(SG(x_i), SG(old)) - Att(SG(x_i), f(SG(old)))||^2 / D       by content alone, W_q W_k W_v stopped

With gradient = "stopped", as published, the language model's loss does not see f: the reconstruction of attention trains it, and
nothing else does. gradient = "full" lets the loss through the caches and through f, as memory replay can train it.

State: 4 B (C + W + L) D bytes in float32, without the segment at a border, and while training the reconstruction's sum
(`state.auxiliary`). It reaches back n_layers (W + c C) tokens.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.relative_segments import RelativeSegments, check_segments
from memseq.ops.attention import attend

__all__ = ["CompressiveConfig", "CompressiveMemory", "CompressiveState"]


class CompressiveState(NamedTuple):
    memory: Float[Tensor, "B C+W D"]  # compressed inputs, then the last W before the open segment, newest last
    opened: Float[Tensor, "B L D"]  # slot i holds input i of the open segment
    position: Int[Tensor, "B"]  # tokens read, on the host
    auxiliary: Float[Tensor, "B"]  # the reconstruction's loss while training, summed over tokens


@dataclass(frozen=True, kw_only=True)
class CompressiveConfig:
    d_model: int
    n_heads: int = 4
    window: int = 64  # W: inputs kept as they are, whole segments of them
    compressed: int = 64  # C: compressed inputs kept
    rate: int = 4  # c: inputs made into one
    segment_length: int = 64  # L
    compression: Literal["conv", "mean", "max"] = "conv"
    reconstruction: float = 1.0  # weight of the loss that trains the convolution; pools have nothing to train
    gradient: Literal["stopped", "full"] = "stopped"  # at a border
    clamp: int | None = None  # distances above it share one embedding
    dropout: float = 0.0  # of the attention weights

    def __post_init__(self) -> None:
        check_segments(self)
        if self.rate < 1 or self.segment_length % self.rate:
            raise ConfigError(
                f"a segment of {self.segment_length} inputs cannot be compressed {self.rate} to 1; use a rate that divides it"
            )
        if self.window < 0 or self.window % self.segment_length:
            near = self.segment_length * max(1, round(self.window / self.segment_length))
            raise ConfigError(f"the window holds whole segments of {self.segment_length}, got window={self.window}; use {near}")
        if self.compressed < 0:
            raise ConfigError(f"compressed must be at least 0 (0 is Transformer-XL), got {self.compressed}")
        if self.compression not in ("conv", "mean", "max"):
            raise ConfigError(f"compression must be 'conv', 'mean' or 'max', got {self.compression!r}")
        if self.reconstruction < 0:
            raise ConfigError(f"reconstruction must be at least 0 (0 leaves the compression untrained), got {self.reconstruction}")

    @classmethod
    def of_size(cls, size: "object") -> "CompressiveConfig":
        """The memory of a `presets.Size`: half of a window's inputs as they are, half compressed."""
        d_model, n_heads, L, slots = (getattr(size, name) for name in ("d_model", "n_heads", "segment_length", "n_slots"))
        return cls(d_model=d_model, n_heads=n_heads, segment_length=L, window=L, compressed=slots)

    def build(self) -> "CompressiveMemory":
        return CompressiveMemory(self)


class CompressiveMemory(RelativeSegments[CompressiveState]):
    def __init__(self, config: CompressiveConfig) -> None:
        C, W, L = config.compressed, config.window, config.segment_length
        super().__init__(config, memory_size=C + W, count=C + W + L, reach=None)
        if config.compression == "conv":
            self.convolution = Linear(config.rate * config.d_model, config.d_model)
            with torch.no_grad():  # starts as the mean
                mean = torch.eye(config.d_model).repeat(1, config.rate) / config.rate
                self.convolution.weight.copy_(mean)
                self.convolution.bias.zero_()

    def init_state(self, batch_size: int) -> CompressiveState:
        memory, opened = self._nothing(batch_size)
        none = opened.new_zeros(batch_size, dtype=torch.promote_types(opened.dtype, torch.float32))
        return CompressiveState(memory, opened, torch.zeros(batch_size, dtype=torch.int64), none)

    def compress(self, old: Float[Tensor, "B L D"]) -> Float[Tensor, "B L_c D"]:
        """f: every `rate` inputs made into one."""
        groups = old.unflatten(1, (-1, self.config.rate))
        match self.config.compression:
            case "conv":
                return self.convolution(groups.flatten(2)).to(old.dtype)
            case "mean":
                return groups.mean(2)
            case _:
                return groups.amax(2)

    def _held(self, closed: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        c = self.config
        left = (closed - c.window // c.segment_length).clamp(min=0)  # segments that have fallen off m
        return (closed * c.segment_length).clamp(max=c.window) + (left * (c.segment_length // c.rate)).clamp(max=c.compressed)

    def _close(self, state: CompressiveState) -> CompressiveState:
        c = self.config
        segments = torch.cat([state.memory[:, c.compressed :], state.opened], dim=1)
        old, recent = segments.split((c.segment_length, c.window), dim=1)
        compressed, auxiliary = state.memory[:, : c.compressed], state.auxiliary
        fell = state.position > c.window  # rows that had a full m
        if fell.any() and c.compressed:
            new = self.compress(old)
            after = torch.cat([compressed, new], dim=1)[:, -c.compressed :]
            compressed = after if fell.all() else torch.where(fell[:, None, None].to(after.device), after, compressed)
            if self.training and c.reconstruction and c.compression == "conv":
                error = self._reconstruction(state.opened.detach(), old.detach())
                auxiliary = auxiliary + c.reconstruction * error * fell.to(error.device)
        memory = torch.cat([compressed, recent], dim=1)
        if c.gradient == "stopped":
            memory = memory.detach()
        return CompressiveState(memory, self._nothing(len(memory))[1], state.position, auxiliary)

    def _reconstruction(self, x: Float[Tensor, "B L D"], old: Float[Tensor, "B L D"]) -> Float[Tensor, "B"]:
        """How far attention to what is compressed lies from attention to what was there: its gradient is f's alone."""
        W_q, W_k, W_v = self.heads.inputs.weight.detach().chunk(3)
        H = self.config.n_heads
        q = F.linear(x, W_q).unflatten(-1, (H, -1)).transpose(1, 2)

        def read(c: Tensor) -> Tensor:
            k, v = (F.linear(c, W).unflatten(-1, (H, -1)).transpose(1, 2) for W in (W_k, W_v))
            return attend(q, k, v)

        apart = (read(old) - read(self.compress(old))).to(torch.promote_types(x.dtype, torch.float32))
        return apart.square().sum((1, 2, 3)) / self.config.d_model

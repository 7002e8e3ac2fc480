"""Sizes that work: a language model of any system here, in three sizes, and the shapes of the Memformer paper.

    tiny    trains in minutes on two CPU cores
    small   trains in minutes on one GPU, in hours on a CPU
    base    the size of GPT-2 small

Systems of one size share width, depth and feedforward, so that what differs is the memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memseq.errors import ConfigError, nearest
from memseq.layers.slots import SlotsConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig
from memseq.models.stack import StackConfig

__all__ = ["PAPER_SHAPES", "SIZES", "Size", "mnist", "preset", "systems_with_presets", "wikitext103"]


@dataclass(frozen=True, kw_only=True)
class Size:
    """Width, depth and memory of one size."""

    d_model: int
    n_layers: int
    n_heads: int
    segment_length: int  # tokens between two writes of the memory
    n_slots: int
    window: int  # tokens that near attention reaches back


SIZES = {
    "tiny": Size(d_model=128, n_layers=4, n_heads=4, segment_length=32, n_slots=16, window=32),
    "small": Size(d_model=384, n_layers=6, n_heads=6, segment_length=128, n_slots=32, window=128),
    "base": Size(d_model=768, n_layers=12, n_heads=12, segment_length=256, n_slots=64, window=256),
}


def _memory(system: str) -> Callable[[Size], Any]:
    """How a size is written as the memory of one layer. Imports on use: a preset needs its own system only."""

    def build(size: Size) -> Any:
        heads: dict[str, Any] = {"d_model": size.d_model, "n_heads": size.n_heads}
        match system:
            case "attention":
                from memseq.memories.attention import AttentionConfig

                return AttentionConfig(**heads)
            case "sliding_window":
                from memseq.memories.sliding_window import SlidingWindowConfig

                return SlidingWindowConfig(**heads, window=size.window)
            case "segment_attention":
                from memseq.memories.segment_attention import SegmentAttentionConfig

                return SegmentAttentionConfig(**heads, segment_length=size.segment_length)
            case "transformer_xl":
                from memseq.memories.transformer_xl import TransformerXLConfig

                return TransformerXLConfig(**heads, segment_length=size.segment_length, window=size.window)
            case "elman":
                from memseq.memories.elman import ElmanConfig

                return ElmanConfig(d_model=size.d_model)
            case "jordan":
                from memseq.memories.jordan import JordanConfig

                return JordanConfig(d_model=size.d_model)
            case "lstm":
                from memseq.memories.lstm import LSTMConfig

                return LSTMConfig(d_model=size.d_model)
            case _:
                from memseq.memories.gru import GRUConfig

                return GRUConfig(d_model=size.d_model)

    return build


STACKS = ("attention", "elman", "gru", "jordan", "lstm", "segment_attention", "sliding_window", "transformer_xl")


def systems_with_presets() -> list[str]:
    """The systems `preset` knows."""
    return sorted([*STACKS, "memformer", "memformer_encdec"])


def preset(system: str, size: str = "tiny", *, vocab_size: int = 256, **changes: int) -> Any:
    """The config of a language model of `system` in `size`; `changes` replaces fields of `Size`.

    Raises `ConfigError` on a name that is not known, with the nearest one.

    >>> preset("memformer", "tiny", n_slots=32).slots.n_slots
    32
    """
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; {nearest(size, list(SIZES))}")
    unknown = sorted(set(changes) - set(Size.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"a size has no field {unknown[0]!r}; {nearest(unknown[0], list(Size.__dataclass_fields__))}")
    shape = Size(**{**vars(SIZES[size]), **changes})
    if system == "memformer":
        return MemformerLMConfig(
            vocab_size=vocab_size, d_model=shape.d_model, layers=shape.n_layers * (_memory("sliding_window")(shape),), slots=_slots(shape)
        )
    if system == "memformer_encdec":
        half = shape.n_layers // 2
        return MemformerEncDecConfig(
            vocab_size=vocab_size,
            d_model=shape.d_model,
            n_heads=shape.n_heads,
            n_encoder_layers=shape.n_layers - half,
            n_decoder_layers=half,
            slots=_slots(shape),
        )
    if system not in STACKS:
        raise ConfigError(f"there is no preset for {system!r}; {nearest(system, systems_with_presets())}")
    return StackConfig(vocab_size=vocab_size, d_model=shape.d_model, layers=shape.n_layers * (_memory(system)(shape),))


def _slots(shape: Size) -> SlotsConfig:
    return SlotsConfig(d_model=shape.d_model, n_heads=shape.n_heads, n_slots=shape.n_slots, segment_length=shape.segment_length)


def wikitext103(*, vocab_size: int = 50257, n_slots: int = 1024, segment_length: int = 128) -> MemformerEncDecConfig:
    """The paper's WikiText-103 model: encoder 4 + decoder 16, width 512, 8 heads."""
    slots = SlotsConfig(d_model=512, n_heads=8, n_slots=n_slots, segment_length=segment_length)
    return MemformerEncDecConfig(vocab_size=vocab_size, d_model=512, n_heads=8, n_encoder_layers=4, n_decoder_layers=16, slots=slots)


def mnist(*, n_slots: int = 64, segment_length: int = 28) -> MemformerEncDecConfig:
    """The paper's image model: 256 grey values a pixel, encoder 4 + decoder 8, width 128, 4 heads, feedforward 256; a row a segment."""
    slots = SlotsConfig(d_model=128, n_heads=4, n_slots=n_slots, segment_length=segment_length)
    return MemformerEncDecConfig(vocab_size=256, d_model=128, n_heads=4, n_encoder_layers=4, n_decoder_layers=8, ff_mult=2.0, slots=slots)


PAPER_SHAPES = {"wikitext103": wikitext103, "mnist": mnist}

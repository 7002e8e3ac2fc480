"""Sizes that work: a language model of any system here, in three sizes, and the shapes of the Memformer paper.

    tiny    trains in minutes on two CPU cores
    small   trains in minutes on one GPU, in hours on a CPU
    base    the size of GPT-2 small

Systems of one size share width, depth and feedforward, so that what differs is the memory.
"""

from dataclasses import MISSING, dataclass, fields
from typing import Any

from memseq.errors import ConfigError, nearest
from memseq.layers.slots import SlotsConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig
from memseq.models.stack import StackConfig
from memseq.systems import SYSTEMS, config_class

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


def _takes(config: Any) -> set[str]:
    """The fields of a size that a memory's config has; empty where it needs something that no size says."""
    names = {f.name for f in fields(config)} & set(Size.__dataclass_fields__) - {"n_layers"}
    needs = {f.name for f in fields(config) if f.default is MISSING and f.default_factory is MISSING}
    return names if needs <= names else set()


def systems_with_presets() -> list[str]:
    """The systems `preset` knows: memories whose config is a matter of size, and all that say for themselves what a size is."""
    built = {
        row.stem: config_class(row.stem) for row in SYSTEMS.values() if row.kind in {"memory", "model"} and row.stem not in _SPOKEN_FOR
    }
    return sorted(stem for stem, config in built.items() if hasattr(config, "of_size") or _takes(config))


# stems that are built under another's name: Memformer is its language model, a stack is of other memories
_MODEL_OF = {"memformer": "memformer_lm"}
_SPOKEN_FOR = {"memformer_lm", "stack"}


def preset(system: str, size: str = "tiny", *, vocab_size: int = 256, **changes: int) -> Any:
    """The config of a language model of `system` in `size`; `changes` replaces fields of `Size`.

    A memory makes a stack of blocks, from the fields its config shares with `Size`. A config that is more than such fields has a
    class method of its own: `of_size(size)` for a memory, `of_size(size, vocab_size)` for a model. Raises `ConfigError` on a name
    that is not known, with the nearest one.

    >>> preset("memformer", "tiny", n_slots=32).slots.n_slots
    32
    """
    if size not in SIZES:
        raise ConfigError(f"there is no size {size!r}; {nearest(size, list(SIZES))}")
    unknown = sorted(set(changes) - set(Size.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"a size has no field {unknown[0]!r}; {nearest(unknown[0], list(Size.__dataclass_fields__))}")
    shape = Size(**{**vars(SIZES[size]), **changes})
    known = systems_with_presets()
    if system not in known:
        raise ConfigError(f"there is no preset for {system!r}; {nearest(system, known)}")
    stem = _MODEL_OF.get(system, system)
    config: Any = config_class(stem)
    if SYSTEMS[stem].kind == "model":
        return config.of_size(shape, vocab_size)
    memory = config.of_size(shape) if hasattr(config, "of_size") else config(**{name: getattr(shape, name) for name in _takes(config)})
    return StackConfig(vocab_size=vocab_size, d_model=shape.d_model, layers=shape.n_layers * (memory,))


def wikitext103(*, vocab_size: int = 50257, n_slots: int = 1024, segment_length: int = 128) -> MemformerEncDecConfig:
    """The paper's WikiText-103 model: encoder 4 + decoder 16, width 512, 8 heads."""
    slots = SlotsConfig(d_model=512, n_heads=8, n_slots=n_slots, segment_length=segment_length)
    return MemformerEncDecConfig(vocab_size=vocab_size, d_model=512, n_heads=8, n_encoder_layers=4, n_decoder_layers=16, slots=slots)


def mnist(*, n_slots: int = 64, segment_length: int = 28) -> MemformerEncDecConfig:
    """The paper's image model: 256 grey values a pixel, encoder 4 + decoder 8, width 128, 4 heads, feedforward 256; a row a segment."""
    slots = SlotsConfig(d_model=128, n_heads=4, n_slots=n_slots, segment_length=segment_length)
    return MemformerEncDecConfig(vocab_size=256, d_model=128, n_heads=4, n_encoder_layers=4, n_decoder_layers=8, ff_mult=2.0, slots=slots)


PAPER_SHAPES = {"wikitext103": wikitext103, "mnist": mnist}

"""A small config of every memory and model, and of every branch of theirs that is another function.

Each is made on use, so that a stem is imported by its own test alone.
"""

from collections.abc import Callable
from typing import Any


def attention() -> list[Any]:
    from memseq.memories.attention import AttentionConfig

    return [
        AttentionConfig(d_model=16, n_heads=2, block_size=5),
        AttentionConfig(d_model=16, n_heads=2, block_size=3, capacity=9),
    ]


def sliding_window() -> list[Any]:
    from memseq.memories.sliding_window import SlidingWindowConfig

    return [SlidingWindowConfig(d_model=16, n_heads=2, window=5), SlidingWindowConfig(d_model=16, n_heads=2, window=1)]


def segment_attention() -> list[Any]:
    from memseq.memories.segment_attention import SegmentAttentionConfig

    return [
        SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=5),
        SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=1),
    ]


def transformer_xl() -> list[Any]:
    from memseq.memories.transformer_xl import TransformerXLConfig

    small = {"d_model": 16, "n_heads": 2, "segment_length": 4, "window": 6}
    return [
        TransformerXLConfig(**small),
        TransformerXLConfig(**small, gradient="full", clamp=3),
        TransformerXLConfig(**small, visible="segment"),
    ]


def elman() -> list[Any]:
    from memseq.memories.elman import ElmanConfig

    return [ElmanConfig(d_model=16), ElmanConfig(d_model=16, hidden_size=9, activation="relu", start="identity", initial="learned")]


def jordan() -> list[Any]:
    from memseq.memories.jordan import JordanConfig

    return [JordanConfig(d_model=16), JordanConfig(d_model=16, hidden_size=9, decay=0.0, output="tanh", initial="learned")]


def lstm() -> list[Any]:
    from memseq.layers.recurrent import Zoneout
    from memseq.memories import lstm

    cells = (
        lstm.Plain(),
        lstm.Projected(size=7),
        lstm.Peephole(),
        lstm.Coupled(),
        lstm.LayerNormed(),
        lstm.Original(),
        lstm.Original(truncated=False),
        lstm.Ablated(without="forget_gate"),
        lstm.RecurrentDropout(rate=0.2),
        Zoneout(cell=lstm.Plain(), rates=(0.1, 0.3)),
    )
    return [lstm.LSTMConfig(d_model=16, hidden_size=9, initial="learned", cell=cell) for cell in cells]


def gru() -> list[Any]:
    from memseq.layers.recurrent import Zoneout
    from memseq.memories.gru import AfterReset, BeforeReset, GRUConfig

    cells = (AfterReset(), BeforeReset(), Zoneout(cell=AfterReset(), rates=(0.2,)))
    return [GRUConfig(d_model=16), *(GRUConfig(d_model=16, hidden_size=9, initial="learned", cell=cell) for cell in cells)]


def bidirectional() -> list[Any]:
    from memseq.memories.bidirectional import BidirectionalConfig
    from memseq.memories.elman import ElmanConfig
    from memseq.memories.sliding_window import SlidingWindowConfig

    elman, window = ElmanConfig(d_model=16), SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    return [BidirectionalConfig(memory=elman), BidirectionalConfig(memory=window, segment_length=4)]


def look_ahead() -> list[Any]:
    from memseq.memories.elman import ElmanConfig
    from memseq.memories.look_ahead import LookAheadConfig
    from memseq.memories.sliding_window import SlidingWindowConfig

    elman, window = ElmanConfig(d_model=16), SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    return [LookAheadConfig(memory=elman, look_ahead=4), LookAheadConfig(memory=window, look_ahead=2)]


def memformer() -> list[Any]:
    from memseq.memories.memformer import MemformerConfig

    small = {"d_model": 16, "n_heads": 2, "n_slots": 3, "segment_length": 4}
    return [
        MemformerConfig(**small),
        MemformerConfig(**small, update="gru", forget="none"),
        MemformerConfig(**small, forget="norm", keep_bias=1.0),
        MemformerConfig(d_model=16, n_heads=2, n_slots=5, segment_length=2),
    ]


def stack() -> list[Any]:
    from memseq.memories.attention import AttentionConfig
    from memseq.memories.gru import GRUConfig
    from memseq.memories.memformer import MemformerConfig
    from memseq.memories.segment_attention import SegmentAttentionConfig
    from memseq.memories.sliding_window import SlidingWindowConfig
    from memseq.models.stack import StackConfig

    window = SlidingWindowConfig(d_model=16, n_heads=2, window=3)
    slots = MemformerConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    segment = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=5)
    return [
        StackConfig(vocab_size=13, d_model=16, layers=((window, slots), segment, GRUConfig(d_model=16))),
        StackConfig(vocab_size=13, d_model=16, layers=(AttentionConfig(d_model=16, n_heads=2, block_size=4),)),
    ]


def memformer_lm() -> list[Any]:
    from memseq.layers.slots import SlotsConfig
    from memseq.memories.segment_attention import SegmentAttentionConfig
    from memseq.memories.sliding_window import SlidingWindowConfig
    from memseq.models.memformer import MemformerLMConfig

    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    near = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=4), SlidingWindowConfig(d_model=16, n_heads=2, window=5)
    shared = MemformerLMConfig(vocab_size=13, d_model=16, layers=near, slots=slots)
    return [shared, MemformerLMConfig(vocab_size=13, d_model=16, layers=near, slots=slots, memory="per_layer")]


def memformer_encdec() -> list[Any]:
    from memseq.layers.slots import SlotsConfig
    from memseq.models.memformer_encdec import MemformerEncDecConfig

    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    return [MemformerEncDecConfig(vocab_size=13, d_model=16, slots=slots, n_heads=2, n_encoder_layers=1, n_decoder_layers=2)]


CONFIGS: dict[str, Callable[[], list[Any]]] = {
    make.__name__: make
    for make in (
        attention,
        sliding_window,
        segment_attention,
        transformer_xl,
        elman,
        jordan,
        lstm,
        gru,
        bidirectional,
        look_ahead,
        memformer,
        stack,
        memformer_lm,
        memformer_encdec,
    )
}

from typing import Any

from memseq.layers.slots import SlotsConfig
from memseq.models.memformer_encdec import MemformerEncDecConfig


def configs() -> list[Any]:
    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=3, segment_length=4)
    return [MemformerEncDecConfig(vocab_size=13, d_model=16, slots=slots, n_heads=2, n_encoder_layers=1, n_decoder_layers=2)]

from typing import Any

from memseq.models.membart import MemBARTConfig
from memseq.retrofit.encoder_decoder import BartBackboneConfig


def configs() -> list[Any]:
    from transformers import BartConfig

    halves = {
        f"{half}_{name}": n for half in ("encoder", "decoder") for name, n in (("layers", 1), ("ffn_dim", 12), ("attention_heads", 2))
    }
    bart = BartConfig(vocab_size=13, d_model=8, max_position_embeddings=8, dropout=0.0, **halves)
    return [MemBARTConfig(backbone=BartBackboneConfig.of(bart), n_slots=2, segment_length=3, gate_bias=-1.0)]

"""Memories made into models."""

from memseq.models.language_model import LanguageModel
from memseq.models.memformer import MemformerLM, MemformerLMConfig
from memseq.models.memformer_encdec import MemformerEncDec, MemformerEncDecConfig
from memseq.models.presets import preset
from memseq.models.stack import Stack, StackConfig

__all__ = [
    "LanguageModel",
    "MemformerEncDec",
    "MemformerEncDecConfig",
    "MemformerLM",
    "MemformerLMConfig",
    "Stack",
    "StackConfig",
    "preset",
]

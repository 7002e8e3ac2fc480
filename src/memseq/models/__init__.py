"""Memories made into models."""

from memseq.models.language_model import LanguageModel
from memseq.models.memformer import MemformerLM, MemformerLMConfig
from memseq.models.stack import Stack, StackConfig

__all__ = ["LanguageModel", "MemformerLM", "MemformerLMConfig", "Stack", "StackConfig"]

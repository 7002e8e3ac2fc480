"""Our models as Hugging Face models. Needs the extra `hf`; names are imported when they are first used."""

from importlib import import_module
from typing import Any

_HOME = {"MemseqCache": "cache", "MemseqConfig": "configuration", "MemseqForCausalLM": "huggingface"}

__all__ = ["MemseqCache", "MemseqConfig", "MemseqForCausalLM"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memseq.retrofit' has no attribute {name!r}")
    return getattr(import_module(f"memseq.retrofit.{_HOME[name]}"), name)

"""Our models as Hugging Face models, and memory for pretrained ones. Needs the extra `hf`; names are imported on first use."""

from importlib import import_module
from typing import Any

_HOME = {
    "BartBackbone": "encoder_decoder",
    "BartBackboneConfig": "encoder_decoder",
    "HuggingFaceBackbone": "backbone",
    "HuggingFaceConfig": "backbone",
    "MemseqCache": "cache",
    "MemseqConfig": "configuration",
    "MemseqForCausalLM": "huggingface",
    "add_lora": "adapters",
    "freeze_backbone": "adapters",
    "from_mamba2": "linear_weights",
    "from_mamba2_mixer": "linear_weights",
    "from_qwen3_next_layer": "linear_weights",
    "load_adapter": "adapters",
    "load_llama2c": "llama2c",
    "save_adapter": "adapters",
    "with_memory": "adapters",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'memseq.retrofit' has no attribute {name!r}")
    return getattr(import_module(f"memseq.retrofit.{_HOME[name]}"), name)

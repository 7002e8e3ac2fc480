"""Weights of transformers' linear layers, read into ours: the same logits, with the state in the caller's hands.

    from_mamba2(model)                    Mamba2ForCausalLM       -> models/mamba2.py
    from_mamba2_mixer(mixer)              Mamba2Mixer             -> memories/mamba2.py
    from_qwen3_next_layer(layer)          Qwen3NextGatedDeltaNet  -> memories/gated_deltanet.py

The weights are copied; what comes back shares nothing with what was given, and has its dtype and device. The layouts differ in this:
Qwen3-Next stores q, k, v, z (and b, a) key head by key head, ours one after the other for all heads; both of transformers'
keep convolution weights as [C, 1, width].
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.memories.gated_deltanet import GatedDeltaNetConfig, GatedDeltaNetMemory
from memseq.memories.mamba2 import Mamba2Config, Mamba2Memory
from memseq.models.mamba2 import Mamba2LM, Mamba2LMConfig

__all__ = ["from_mamba2", "from_mamba2_mixer", "from_qwen3_next_layer"]


def from_mamba2(model: Any) -> Mamba2LM:
    """The language model with the weights of a transformers `Mamba2ForCausalLM`, tied or not."""
    _check_kind(model, "Mamba2ForCausalLM")
    given, blocks = model.config, model.backbone.layers
    config = Mamba2LMConfig(
        vocab_size=given.vocab_size,
        layer=_mamba2_config(blocks[0].mixer),
        n_layers=len(blocks),
        norm_eps=given.layer_norm_epsilon,
        tied=model.lm_head.weight is model.backbone.embeddings.weight,
    )
    ours = config.build().to(model.lm_head.weight)
    copied = {"embedding.weight": model.backbone.embeddings.weight, "norm.weight": model.backbone.norm_f.weight}
    if not config.tied:
        copied["output.weight"] = model.lm_head.weight
    for i, block in enumerate(blocks):
        copied[f"norms.{i}.weight"] = block.norm.weight
        copied |= {f"layers.{i}.{name}": weight for name, weight in _mamba2_weights(block.mixer).items()}
    ours.load_state_dict(copied)
    return ours.train(model.training)


def from_mamba2_mixer(mixer: Any) -> Mamba2Memory:
    """One layer's memory, with the weights of a transformers `Mamba2Mixer`."""
    _check_kind(mixer, "Mamba2Mixer")
    return _filled(_mamba2_config(mixer).build(), _mamba2_weights(mixer), mixer)


def _mamba2_config(mixer: Any) -> Mamba2Config:
    if mixer.activation not in ("silu", "swish"):
        raise ConfigError(f"the mixer's activation is {mixer.activation!r}; the memory has SiLU alone")
    low, high = mixer.time_step_limit
    return Mamba2Config(
        d_model=mixer.hidden_size,
        expand=mixer.intermediate_size // mixer.hidden_size,
        head_size=mixer.head_dim,
        state_size=mixer.ssm_state_size,
        n_groups=mixer.n_groups,
        conv_width=mixer.conv_kernel_size,
        conv_bias=mixer.use_conv_bias,
        bias=mixer.use_bias,
        min_step=low,
        max_step=None if math.isinf(high) else high,
        norm_eps=mixer.norm.variance_epsilon,
    )


def _mamba2_weights(mixer: Any) -> dict[str, Tensor]:
    names = {
        "inputs.weight": mixer.in_proj.weight,
        "inputs.bias": mixer.in_proj.bias,
        "conv.weight": mixer.conv1d.weight[:, 0],
        "conv.bias": mixer.conv1d.bias,
        "gate.A_log": mixer.A_log,
        "gate.dt_bias": mixer.dt_bias,
        "skip": mixer.D,
        "norm.weight": mixer.norm.weight,
        "out.weight": mixer.out_proj.weight,
        "out.bias": mixer.out_proj.bias,
    }
    return {name: weight for name, weight in names.items() if weight is not None}


def from_qwen3_next_layer(layer: Any) -> GatedDeltaNetMemory:
    """One layer's memory, with the weights of the linear attention of a transformers Qwen3-Next model."""
    _check_kind(layer, "Qwen3NextGatedDeltaNet")
    if layer.activation not in ("silu", "swish"):
        raise ConfigError(f"the layer's activation is {layer.activation!r}; the memory has SiLU alone")
    G, H, K, V = layer.num_k_heads, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim
    memory = GatedDeltaNetConfig(
        d_model=layer.hidden_size,
        n_heads=H,
        n_key_heads=G,
        key_size=K,
        value_size=V,
        conv_width=layer.conv_kernel_size,
        norm_eps=layer.layer_norm_epsilon,
    ).build()
    values = H // G * V  # of one key head
    q, k, v, z = layer.in_proj_qkvz.weight.unflatten(0, (G, -1)).split([K, K, values, values], dim=1)
    b, a = layer.in_proj_ba.weight.unflatten(0, (G, -1)).chunk(2, dim=1)
    weights = {
        "heads.inputs.weight": torch.cat([part.flatten(0, 1) for part in (q, k, v, z, b, a)]),
        "heads.conv.weight": layer.conv1d.weight[:, 0],
        "gate.A_log": layer.A_log,
        "gate.dt_bias": layer.dt_bias,
        "norm.weight": layer.norm.weight,
        "out.weight": layer.out_proj.weight,
    }
    return _filled(memory, weights, layer)


def _filled(memory: Any, weights: dict[str, Tensor], given: nn.Module) -> Any:
    memory = memory.to(weights["out.weight"])
    memory.load_state_dict(weights)
    return memory.train(given.training)


def _check_kind(given: Any, wanted: str) -> None:
    if type(given).__name__ != wanted:
        raise ConfigError(f"this reads the weights of a transformers {wanted}, got {type(given).__name__}")

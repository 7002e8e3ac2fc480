"""Weights and states of flash-linear-attention's layers, read into ours and back.

    memory = from_fla(config, checkpoint, prefix="model.layers.0.attn.")      any of LAYERS; the config says what shapes do not
    state  = state_from_fla(memory, recurrent, conv)                          a layer's cache, as our state
    recurrent, conv = state_to_fla(memory, state)
    model  = from_fla(RWKV7LMConfig(...), checkpoint)                         a whole RWKV7ForCausalLM

The layouts of release 0.6. What differs: fla keeps a projection for each of q, k, v and the gates, ours is one; a convolution is
[C, 1, width] there and [C, width] here; most layers keep the matrix values first, [B, H, V, K], and the last `width` inputs of each
convolution, [B, C, width], of which the oldest is never read again. DeltaNet and RWKV-7 keep the matrix keys first.

Not read, and refused by name: single RWKV-7 layers above the first (they need the first layer's values, which the whole model has), grouped
keys of GLA. Of HGRN-2's bounds, which fla keeps in the model, the config takes one number a layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from memseq.errors import CheckpointError, ConfigError, StateError
from memseq.memories.deltanet import DeltaNetConfig
from memseq.memories.gated_deltanet import GatedDeltaNetConfig
from memseq.memories.gla import GLAConfig
from memseq.memories.hgrn2 import HGRN2Config
from memseq.memories.kda import KDAConfig
from memseq.memories.rwkv7 import RWKV7Config
from memseq.models.rwkv7 import RWKV7LMConfig

__all__ = ["LAYERS", "from_fla", "state_from_fla", "state_to_fla"]

Take = Callable[[str], Tensor]  # a weight of the layer by its name there


def from_fla(config: Any, weights: Mapping[str, Tensor], *, prefix: str = "") -> Any:
    """The memory of `config` with the weights of a layer of fla, of its state dict or of a model's under `prefix`.

    Raises `CheckpointError` where a weight is missing, left over or of another shape than the config's, and `ConfigError` for a
    config of no layer of fla.
    """
    if type(config) not in LAYERS | MODELS:
        known = ", ".join(sorted(kind.__name__ for kind in LAYERS))
        raise ConfigError(f"fla has no layer of {type(config).__name__} that could be read; there are {known}")
    mine = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    left = set(mine)

    def take(name: str) -> Tensor:
        if name not in mine:
            raise CheckpointError(f"there is no weight {prefix}{name}; it holds {', '.join(sorted(mine)) or 'nothing under this prefix'}")
        left.discard(name)
        return mine[name].detach()

    found = (LAYERS | MODELS)[type(config)](config, take)
    if left:
        raise CheckpointError(f"the layer holds {', '.join(sorted(left))}, which {type(config).__name__} has no place for")
    memory = config.build().to(next(iter(found.values())))
    for name, own in memory.state_dict().items():
        if name in found and found[name].shape != own.shape:
            raise CheckpointError(f"{name} is {list(found[name].shape)} in the layer and {list(own.shape)} in the config: {config}")
    memory.load_state_dict(found)
    return memory


def _joined(take: Take, *names: str) -> Tensor:
    return torch.cat([take(f"{name}.weight") for name in names])


def _conv(take: Take, *names: str) -> Tensor:
    return torch.cat([take(f"{name}_conv1d.weight")[:, 0] for name in names])


def _gla(config: GLAConfig, take: Take) -> dict[str, Tensor]:
    found = {
        "inputs.weight": _joined(take, "q_proj", "k_proj", "v_proj", "g_proj", "gk_proj.0"),
        "gate.weight": take("gk_proj.1.weight"),
        "gate.bias": take("gk_proj.1.bias"),
        "norm.weight": take("g_norm_swish_gate.weight"),
        "out.weight": take("o_proj.weight"),
    }
    return found | ({"conv.weight": _conv(take, "q", "k", "v")} if config.conv_width else {})


def _hgrn2(config: HGRN2Config, take: Take) -> dict[str, Tensor]:
    found = {
        "inputs.weight": _joined(take, "q_proj", "f_proj", "i_proj"),
        "norm.weight": take("g_norm.weight"),
        "out.weight": take("o_proj.weight"),
    }
    return found | ({"conv.weight": _conv(take, "q", "f", "i")} if config.conv_width else {})


def _deltanet(config: DeltaNetConfig, take: Take) -> dict[str, Tensor]:
    return {
        "heads.inputs.weight": _joined(take, "q_proj", "k_proj", "v_proj", "b_proj"),
        "heads.conv.weight": _conv(take, "q", "k", "v"),
        "norm.weight": take("o_norm.weight"),
        "out.weight": take("o_proj.weight"),
    }


def _gated_deltanet(config: GatedDeltaNetConfig, take: Take) -> dict[str, Tensor]:
    return {
        "heads.inputs.weight": _joined(take, "q_proj", "k_proj", "v_proj", "g_proj", "b_proj", "a_proj"),
        "heads.conv.weight": _conv(take, "q", "k", "v"),
        "gate.A_log": take("A_log"),
        "gate.dt_bias": take("dt_bias"),
        "norm.weight": take("o_norm.weight"),
        "out.weight": take("o_proj.weight"),
    }


def _kda(config: KDAConfig, take: Take) -> dict[str, Tensor]:
    return {
        "heads.inputs.weight": _joined(take, "q_proj", "k_proj", "v_proj", "f_proj.0", "g_proj.0", "b_proj"),
        "heads.conv.weight": _conv(take, "q", "k", "v"),
        "fade.weight": take("f_proj.1.weight"),
        "open.weight": take("g_proj.1.weight"),
        "open.bias": take("g_proj.1.bias"),
        "A_log": take("A_log").flatten(),  # [1, 1, H, 1] in early checkpoints
        "dt_bias": take("dt_bias").flatten(),
        "norm.weight": take("o_norm.weight"),
        "out.weight": take("o_proj.weight"),
    }


def _rwkv7(config: RWKV7Config, take: Take) -> dict[str, Tensor]:
    found = {"mixing": torch.cat([take(f"x_{use}").reshape(1, -1) for use in "rwkvag"])}
    for name, theirs in {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}.items():
        found[f"{name}.weight"] = take(f"{theirs}.weight")
    for name, theirs in {"decay": "w_lora", "rate": "a_lora", "gate": "g_lora"}.items():
        found[f"{name}.down.weight"] = take(f"{theirs}.lora.0.weight")
        found[f"{name}.up.weight"] = take(f"{theirs}.lora.2.weight")
        if name != "gate":
            found[f"{name}.up.bias"] = take(f"{theirs}.lora.2.bias")
    for name, theirs in {
        "removal": "k_k",
        "replacement": "k_a",
        "bonus": "r_k",
        "norm.weight": "g_norm.weight",
        "norm.bias": "g_norm.bias",
    }.items():
        found[name] = take(theirs)
    return found


def _rwkv7_lm(config: RWKV7LMConfig, take: Take) -> dict[str, Tensor]:
    names = {"embedding.weight": "model.embeddings.weight", "output.weight": "lm_head.weight"}
    for ours, theirs in {"first_norm": "layers.0.pre_norm", "norm": "norm"}.items():
        names |= {f"{ours}.{part}": f"model.{theirs}.{part}" for part in ("weight", "bias")}
    found = {}
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        for norm, name in {"time_norm": "attn_norm", "channel_norm": "ffn_norm"}.items():
            names |= {f"{ours}.{norm}.{part}": f"{theirs}.{name}.{part}" for part in ("weight", "bias")}
        names |= {f"{ours}.channel.{layer}.weight": f"{theirs}.ffn.{name}.weight" for layer, name in (("up", "key"), ("down", "value"))}
        names[f"{ours}.channel.mixing"] = f"{theirs}.ffn.x_k"
        if i:
            for part, name in {"down.weight": "0.weight", "up.weight": "2.weight", "up.bias": "2.bias"}.items():
                names[f"{ours}.share.{part}"] = f"{theirs}.attn.v_lora.lora.{name}"
        layer = _rwkv7(config.layer, lambda name, theirs=theirs: take(f"{theirs}.attn.{name}"))
        found |= {f"{ours}.time.{name}": weight for name, weight in layer.items()}
    return {ours: take(theirs) for ours, theirs in names.items()} | found


LAYERS: dict[type, Callable[[Any, Take], dict[str, Tensor]]] = {
    GLAConfig: _gla,
    HGRN2Config: _hgrn2,
    DeltaNetConfig: _deltanet,
    GatedDeltaNetConfig: _gated_deltanet,
    KDAConfig: _kda,
    RWKV7Config: _rwkv7,
}
MODELS: dict[type, Callable[[Any, Take], dict[str, Tensor]]] = {RWKV7LMConfig: _rwkv7_lm}
KEYS_FIRST = (DeltaNetConfig, RWKV7Config)


def state_from_fla(memory: Any, recurrent: Tensor, conv: tuple[Tensor, ...] | Tensor | None = None) -> Any:
    """The state of `memory` where a layer of fla stands: `recurrent_state` and `conv_state` of the layer's cache.

    conv    three tensors [B, C, width] of a layer with convolutions, RWKV-7's last input [B, D], or None without either
    """
    _check_layer(memory)
    like = memory.init_state(len(recurrent))
    S = recurrent if isinstance(memory.config, KEYS_FIRST) else recurrent.mT
    if conv is None:
        second = like[1]
    elif isinstance(conv, Tensor):
        second = conv.reshape(len(conv), -1)
    else:
        second = torch.cat([t[..., 1:] for t in conv], dim=1).mT
    leaves = [t.to(own, copy=True).contiguous() for t, own in zip((S, second), like, strict=True)]
    for name, t, own in zip(like._fields, leaves, like, strict=True):
        if t.shape != own.shape:
            raise StateError(f"{name} would be {list(t.shape)}, this memory keeps {list(own.shape)}; is it the cache of this layer?")
    return type(like)(*leaves)


def state_to_fla(memory: Any, state: Any) -> tuple[Tensor, tuple[Tensor, ...] | Tensor | None]:
    """`recurrent_state` and `conv_state` of a layer of fla that stands where `state` stands."""
    _check_layer(memory)
    S, second = state
    recurrent = S.clone() if isinstance(memory.config, KEYS_FIRST) else S.mT.contiguous()
    if isinstance(memory.config, RWKV7Config):
        return recurrent, second.clone()
    if not second.shape[1]:
        return recurrent, None
    sizes = memory.heads.sizes if hasattr(memory, "heads") else memory.sizes
    with_oldest = torch.nn.functional.pad(second, (0, 0, 1, 0)).mT  # fla keeps one more, which it never reads
    return recurrent, tuple(t.contiguous() for t in with_oldest.split(sizes, dim=1))


def _check_layer(memory: Any) -> None:
    if type(getattr(memory, "config", None)) not in LAYERS:
        raise ConfigError(f"{type(memory).__name__} is no layer of fla that could be read")

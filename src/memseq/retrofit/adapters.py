"""A memory around a pretrained model: wrap it, choose what learns, and keep what was learned apart from the model.

    model = with_memory(AutoModelForCausalLM.from_pretrained(name), "rmt", n_slots=16, segment_length=256)
    freeze_backbone(model)                                  only the memory learns; or
    add_lora(model, LoraConfig(r=8, target_modules=...))    the memory and low-rank changes of the backbone (peft)
    save_adapter(model, "adapter")                          what learns, and nothing else
    model = load_adapter("adapter", AutoModelForCausalLM.from_pretrained(name))

A whole model is saved by `memseq.save` as ever. The model that is given is used, not copied: what trains, trains it.
An adapter is two files: `adapter.json`, the config of the whole with typed tags, and `adapter.safetensors`, the weights that learn.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from memseq.configs import from_dict, to_dict
from memseq.errors import CheckpointError, ConfigError, MissingExtraError
from memseq.models.segments import SegmentModel
from memseq.retrofit.backbone import HuggingFaceBackbone, HuggingFaceConfig
from memseq.retrofit.encoder_decoder import BartBackbone, BartBackboneConfig
from memseq.systems import config_class

try:
    from transformers.modeling_utils import PreTrainedModel
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["add_lora", "freeze_backbone", "inject", "load_adapter", "save_adapter", "with_memory"]

FORMAT = "memseq.adapter.1"


def with_memory(model: nn.Module, system: str = "rmt", **settings: Any) -> SegmentModel[Any]:
    """`model`, a causal language model of transformers, inside the segments of `system`; `settings` are fields of its config.

    `system` "membart" wraps a `BartForConditionalGeneration`.

    Where the config has a class method `around(backbone, **settings)`, it says what suits a pretrained network. The result is in
    the mode (training or evaluation) the model was in.
    """
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(
            f"with_memory wraps a causal language model of transformers, got {type(model).__name__}; a peft model is wrapped first and"
            " adapted then, by add_lora"
        )
    config: Any = config_class(system)
    kind = BartBackboneConfig if getattr(config, "encoder_decoder", False) else HuggingFaceConfig
    backbone = kind.of(model).around(model)
    made = config.around(backbone.config, **settings) if hasattr(config, "around") else config(backbone=backbone.config, **settings)
    return made.build(backbone).train(model.training)


def freeze_backbone(model: SegmentModel[Any]) -> None:
    """Only the memory learns from now on; `model.backbone.requires_grad_(True)` undoes it."""
    model.backbone.requires_grad_(False)


def add_lora(model: SegmentModel[Any], config: Any) -> None:
    """Put a low-rank adapter of peft into the backbone: it and the memory learn, the backbone's own weights do not.

    `config` is a `peft.LoraConfig` or a mapping of its fields; its `target_modules` name linear layers of the backbone.
    """
    backbone = _pretrained(model)
    if backbone.config.lora is not None:
        raise ConfigError("the backbone has a LoRA adapter already; load the model anew to give it another one")
    text = json.dumps(dict(config) if isinstance(config, Mapping) else _plain(config), sort_keys=True)
    inject(backbone.model, text)
    backbone.config = replace(backbone.config, lora=text)
    model.config = replace(model.config, backbone=backbone.config)


def inject(model: nn.Module, lora: str) -> None:
    """The adapter that the text describes, with new weights, in place."""
    try:
        import peft
    except ImportError:
        raise MissingExtraError("peft", extra="hf") from None
    training = model.training
    peft.inject_adapter_in_model(peft.LoraConfig(**json.loads(lora)), model)
    model.train(training)


def save_adapter(model: SegmentModel[Any], directory: str | os.PathLike[str]) -> None:
    """Write what learns (parameters that require a gradient) and the config; both files beside their places first."""
    from safetensors.torch import save

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _pretrained(model)
    weights = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    header = {"format": FORMAT, "model": to_dict(model.config)}
    for name, data in (("adapter.safetensors", save(weights)), ("adapter.json", (json.dumps(header, indent=2) + "\n").encode())):
        beside = directory / f".{name}.{os.getpid()}.part"
        beside.write_bytes(data)
        os.replace(beside, directory / name)


def load_adapter(directory: str | os.PathLike[str], model: PreTrainedModel) -> SegmentModel[Any]:
    """The model that `save_adapter` wrote, around `model`, the same pretrained model as then; in evaluation mode.

    What learned then, learns now. Raises `CheckpointError` where the files are missing, damaged, or of another backbone.
    """
    directory = Path(directory)
    config, weights = _read(directory)
    if not isinstance(config.backbone, HuggingFaceConfig):
        raise CheckpointError(f"{directory} is not an adapter of a model of transformers; load the whole with memseq.load")
    given = type(config.backbone).of(model)
    if given.json != config.backbone.json:
        raise CheckpointError(
            f"{directory} is the adapter of another model: {_difference(config.backbone, given)}; give the one it was trained on"
        )
    if config.backbone.lora is not None:
        inject(model, config.backbone.lora)
    whole = config.build(config.backbone.around(model))
    parameters = dict(whole.named_parameters())
    own = {name for name in parameters if not name.startswith("backbone.") or ".lora_" in name}
    for name in sorted(own - set(weights)):
        raise CheckpointError(f"{directory / 'adapter.safetensors'} lacks {name!r}, which its config asks for; copy both files together")
    with torch.no_grad():
        for name, p in parameters.items():
            if name in weights:
                if p.shape != weights[name].shape:
                    raise CheckpointError(
                        f"{directory / 'adapter.safetensors'} holds {name} of shape {list(weights[name].shape)}, the config makes it"
                        f" {list(p.shape)}; copy both files together"
                    )
                p.copy_(weights.pop(name))
                p.requires_grad_()
            else:
                p.requires_grad_(False)
    if weights:
        raise CheckpointError(f"{directory / 'adapter.safetensors'} holds {next(iter(weights))!r}, which the model has not")
    return whole.eval()


def _read(directory: Path) -> tuple[Any, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        header = json.loads((directory / "adapter.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "adapter.safetensors")
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} holds no adapter ({Path(error.filename or 'adapter.safetensors').name} is missing)") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the adapter in {directory} is damaged ({error}); copy it again") from None
    if not isinstance(header, Mapping) or header.get("format") != FORMAT:
        raise CheckpointError(f"{directory / 'adapter.json'} is not one that save_adapter wrote")
    try:
        return from_dict(header["model"]), weights
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'adapter.json'}: {error}") from None


def _pretrained(model: SegmentModel[Any]) -> HuggingFaceBackbone | BartBackbone:
    if not isinstance(model.backbone, HuggingFaceBackbone | BartBackbone):
        raise ConfigError("the backbone is a stack of ours, which learns and is saved with the model; adapters are for pretrained models")
    return model.backbone


def _difference(wanted: HuggingFaceConfig, given: HuggingFaceConfig) -> str:
    """The first setting that differs."""
    ours, theirs = (json.loads(config.json) for config in (wanted, given))
    name = next(name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name))
    return f"it was trained with {name}={ours.get(name)!r}, this model has {theirs.get(name)!r}"


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a `LoraConfig` that are not as by default, as JSON values."""
    usual = type(config)()
    values = {name: value for name, value in vars(config).items() if name not in vars(usual) or value != vars(usual)[name]}
    return {name: plain for name, value in values.items() if (plain := _json(value)) is not None}


def _json(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(cast(Any, value))
    return value

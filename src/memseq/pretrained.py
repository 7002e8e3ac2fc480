"""Models on disk: one directory that memseq and Hugging Face transformers both read.

    config.json          model_type "memseq", what transformers wants to know, and the config under "model" with typed tags
    model.safetensors    the weights, each name behind "model."; weights that are shared are stored once
    tokenizer.json       where a tokenizer is given, with tokenizer_config.json

    save_pretrained(model, "runs/first", tokenizer=Bytes())
    model = load_pretrained("runs/first")
    model = AutoModelForCausalLM.from_pretrained("runs/first")      # after `import memseq`

All files are written beside their places first and then renamed: a full disk or a crash while writing leaves what was there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from memseq.configs import from_dict, to_dict
from memseq.contract import Memory
from memseq.errors import CheckpointError, ConfigError

__all__ = ["load_pretrained", "read_config", "save_pretrained", "weights_of"]

ARCHITECTURE = "MemseqForCausalLM"
PREFIX = "model."  # of every weight: the attribute that holds the model in retrofit/huggingface.py
PAD = "<|pad|>"  # fills up batches of transformers; its id lies past the vocabulary and is never read
Directory = str | os.PathLike[str]


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer of ours, which writes tokenizer.json into a directory."""

    def save(self, directory: Directory) -> Any: ...


@runtime_checkable
class HubTokenizer(Protocol):
    """A tokenizer of transformers, which does the same under another name."""

    def save_pretrained(self, save_directory: Directory) -> Any: ...


def save_pretrained(
    model: Memory[Any], directory: Directory, tokenizer: Tokenizer | HubTokenizer | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Write `model` to `directory`, with `tokenizer` and any JSON values under `extra`; other files there stay.

    Raises `ConfigError` where the config is of a class without a stem, and `OSError` where the disk refuses; what the
    directory held before is then still whole.
    """
    directory = Path(directory)
    config = _header(model, tokenizer, extra)
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f".{os.getpid()}.part"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir()
        _write(beside / "model.safetensors", _bytes_of(weights_of(model)))
        if tokenizer is not None:
            tokenizer.save_pretrained(beside) if isinstance(tokenizer, HubTokenizer) else tokenizer.save(beside)
            _add_padding(beside / "tokenizer_config.json")
        _write(beside / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):  # the config last: it says that all is there
            os.replace(file, directory / file.name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load_pretrained(directory: Directory, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The model saved in `directory`, in evaluation mode (no dropout), in the dtype it was saved in unless `dtype` is given.

    Raises `CheckpointError` where the directory is missing, no model, damaged, or of other weights than its config says.
    """
    directory = Path(directory)
    header = read_config(directory)
    try:
        config = from_dict(header["model"])
    except ConfigError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from None
    weights = _read_weights(directory)
    with torch.random.fork_rng(devices=[]):  # building draws initial weights; loading must not move the caller's random numbers
        model = config.build()
    _check_weights(directory, weights, model)
    kinds = {t.dtype for t in weights.values() if t.is_floating_point()}
    model.to(dtype=dtype or (kinds.pop() if len(kinds) == 1 else None))
    model.load_state_dict(weights, strict=False)  # what is missing is shared with what is there: checked above
    return model.to(device).eval()


def read_config(directory: Directory) -> dict[str, Any]:
    """The whole of `config.json`, with what was saved under `extra`. Raises `CheckpointError` where it is not one of ours."""
    directory = Path(directory)
    file = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}; give one that save_pretrained or `memseq train --out` wrote")
    if not file.is_file():
        raise CheckpointError(f"{directory} holds no config.json; give a directory that save_pretrained or `memseq train --out` wrote")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{file} is not readable JSON ({error}); restore it, or save the model again") from None
    kind = header.get("model_type") if isinstance(header, dict) else None
    if kind != "memseq":
        raise CheckpointError(f"{file} describes a model of type {kind!r}, not 'memseq'; load it with transformers")
    if not isinstance(header.get("model"), dict):
        raise CheckpointError(f"{file} has no config under 'model'; restore it, or save the model again")
    return header


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they go to the file: one name for each tensor (the first, where two share one), contiguous, on the host."""
    seen: dict[int, str] = {}
    kept: dict[str, Tensor] = {}
    for name, t in model.state_dict(keep_vars=True).items():
        if seen.setdefault(id(t), name) == name:
            kept[PREFIX + name] = t.detach().cpu().contiguous()
    return kept


def _header(model: Memory[Any], tokenizer: Tokenizer | HubTokenizer | None, extra: Mapping[str, Any] | None) -> dict[str, Any]:
    config = model.config
    vocab_size = getattr(config, "vocab_size", None)
    weight = next((p for p in model.parameters() if p.is_floating_point()), None)
    return {
        "model_type": "memseq",
        "architectures": [ARCHITECTURE] if vocab_size else None,
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "pad_token_id": vocab_size if tokenizer is not None else None,
        "dtype": str(weight.dtype).removeprefix("torch.") if weight is not None else None,
        "extra": dict(extra or {}),
        "model": to_dict(config),
    }


def _add_padding(file: Path) -> None:
    """Let transformers fill up batches: on the left, with a token past the vocabulary that the attention mask hides."""
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    settings = {"pad_token": PAD, "padding_side": "left", **{key: value for key, value in settings.items() if value is not None}}
    _write(file, (json.dumps(settings, indent=2) + "\n").encode())


def _bytes_of(weights: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save(dict(weights), metadata={"format": "pt"})


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())  # on the disk before it is renamed, so that a crash leaves the old file or the new one


def _read_weights(directory: Path) -> dict[str, Tensor]:
    """The weights of one file, or of the several that an index lists, without their prefix."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    weights: dict[str, Tensor] = {}
    try:
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() and not file.is_file() else [file.name]
        for part in parts:
            file = directory / part
            weights |= load_file(file)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} holds a config but no {file.name}; copy the whole directory") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file ({error}); it may be truncated: copy it again") from None
    return {name.removeprefix(PREFIX): t for name, t in weights.items()}


def _check_weights(directory: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise `CheckpointError` unless `weights` are those of `model`, name by name and shape by shape."""
    wanted = model.state_dict(keep_vars=True)
    have = {id(wanted[name]) for name in weights if name in wanted}
    unknown = sorted(set(weights) - set(wanted))
    missing = sorted(name for name, t in wanted.items() if name not in weights and id(t) not in have)
    if unknown or missing:
        what = f"holds {unknown[0]!r}, which the model has not" if unknown else f"lacks {missing[0]!r}"
        count = f"{len(unknown)} unknown and {len(missing)} missing of {len(wanted)} weights"
        raise CheckpointError(
            f"{directory / 'model.safetensors'} is not of the model in config.json: it {what} ({count}); copy both files together"
        )
    for name, t in weights.items():
        if t.shape != wanted[name].shape:
            raise CheckpointError(
                f"{directory / 'model.safetensors'} is not of the model in config.json: {name} has shape {list(t.shape)},"
                f" the config makes it {list(wanted[name].shape)}; copy both files together"
            )

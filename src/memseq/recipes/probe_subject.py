"""A checkpoint made ready to be probed: ours, or any causal language model of transformers in a directory.

Here is joined what only the top of the house knows: how a model is loaded, which text it was not trained on, how far its
gradients reached, and where in it the layers and the slots are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from memseq.errors import CheckpointError, DataError
from memseq.layers.slots import SlotReader, SlotWriter
from memseq.models.presets import SIZES
from memseq.models.stack import Block
from memseq.pretrained import load_pretrained, read_config
from memseq.probes import Anatomy, Subject
from memseq.recipes.evaluate_text import first_tokens
from memseq.recipes.probe_attention import attention_of, hub_attention
from memseq.recipes.train_text import held_out
from memseq.tasks.text import Text, open_text, stdlib
from memseq.tasks.tokenizers import Tokenizer, load_tokenizer

__all__ = ["anatomy_of", "hub_anatomy", "subject_of"]

HORIZON = 8  # segments that gradients reach back, where the command of a run does not say


def subject_of(
    checkpoint: str | Path, *, places: Sequence[str] = (), needs_text: bool = True, max_tokens: int = 1 << 17, device: str = "cpu"
) -> Subject:
    """The model in `checkpoint` with its tokenizer and text: of `places`, or what was held out when it was trained.

    Raises `CheckpointError` where there is no model that can be read, or no tokenizer where text is needed.
    """
    path = Path(checkpoint)
    ours = _is_ours(path)
    if ours:
        model, anatomy = load_pretrained(path, device=device), None
    else:
        from memseq.retrofit.hub import load_hub

        model, anatomy = load_hub(path, device=device), None
    tokenizer = _tokenizer(path, needs_text or bool(places))
    documents: tuple[Any, ...] = ()
    if tokenizer is not None:
        text = _text(path, places, ours)
        documents = tuple(first_tokens(text.with_tokenizer(tokenizer), max_tokens))
        beyond = max((int(ids.max()) for ids in documents), default=0)
        if beyond >= model.vocab_size:
            raise CheckpointError(
                f"the tokenizer of {path} makes token {beyond} and its model knows {model.vocab_size}; they do not belong"
            )
    anatomy = anatomy_of(model) if ours else hub_anatomy(model)
    return Subject(
        name=path.resolve().name,
        model=model,
        tokenizer=tokenizer,
        documents=documents,
        token_bytes=None if tokenizer is None else _widths(tokenizer, model.vocab_size),
        trained_length=_trained_length(path) if ours else getattr(model, "longest", None),
        longest=None if ours else model.longest,
        anatomy=anatomy,
    )


def anatomy_of(model: nn.Module) -> Anatomy:
    """Where the layers and the slots of a model of ours are."""
    blocks = [module for module in getattr(model, "blocks", ()) if isinstance(module, Block)]
    norm = getattr(model, "norm", None)
    taps = [*(block.norms[0] if len(block.norms) else block.ff_norm for block in blocks), *([norm] if isinstance(norm, nn.Module) else [])]
    embedding: Any = getattr(model, "embedding", None)
    return Anatomy(
        layers=tuple(taps) if blocks else (),
        embedding=None if embedding is None else (lambda: embedding.weight),
        readers=tuple(module for module in model.modules() if isinstance(module, SlotReader)) if blocks else (),
        writers=tuple(module for module in model.modules() if isinstance(module, SlotWriter)) if blocks else (),
        attention=attention_of(model) if blocks else None,
    )


def hub_anatomy(model: Any) -> Anatomy:
    """The blocks of a model of transformers: the longest list of modules of one class."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len({type(m) for m in module}) == 1]
    embedding = model.wrapped.get_input_embeddings()
    if not lists or not isinstance(embedding, nn.Embedding):
        return Anatomy()
    layers = max(lists, key=len)
    parent = next(module for module in model.modules() if any(child is layers for child in module.children()))
    following = list(parent.children())[[child is layers for child in parent.children()].index(True) + 1 :][:1]
    last = [module for module in following if "norm" in type(module).__name__.lower()]  # what reads the last layer
    return Anatomy(layers=(*layers, *last), embedding=lambda: embedding.weight, attention=hub_attention(model, list(layers)))


def _is_ours(path: Path) -> bool:
    """Whether `path` is a directory of memseq; raises where it is no directory of any model."""
    if path.is_file():
        raise CheckpointError(f"{path} is a file; give the directory that holds config.json and the weights")
    if not path.is_dir() or not (path / "config.json").is_file():
        read_config(path)  # says what is missing
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return bool(read_config(path))  # says that it is damaged
    return isinstance(kind, dict) and kind.get("model_type") == "memseq"


def _tokenizer(path: Path, needed: bool) -> Tokenizer | None:
    if (path / "tokenizer.json").is_file():
        return load_tokenizer(path)
    if needed:
        raise CheckpointError(
            f"{path} holds no tokenizer.json, and a text cannot be read without it; save one there, or name probes that read tokens"
            " alone, such as: recall capacity copying retention"
        )
    return None


def _text(path: Path, places: Sequence[str], ours: bool) -> Text:
    if places:
        text = open_text(places)
        if not isinstance(text, Text):
            raise DataError("a streamed data set has no end to probe on; name a file or a folder by --text")
        return text
    return held_out(path)[0] if ours else stdlib()[1]


def _widths(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Bytes of each token, for a vocabulary that may be larger than the tokenizer's."""
    widths = [int(n) for n in tokenizer.token_bytes]
    return (widths + [0] * vocab_size)[:vocab_size]


def _trained_length(path: Path) -> int | None:
    """Tokens that gradients reached back, from how the run was started; None where nothing says."""
    file = path / "command.json"
    if not file.is_file():
        return None
    try:
        command = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    length = command.get("segment_length", SIZES[command.get("size", "tiny")].segment_length)
    return int(length) * int(command.get("horizon", HORIZON))

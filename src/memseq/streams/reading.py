"""What every reader of streams shares: tokens checked once, and the mode a model reads in.

Nothing here knows more of a model than the law, its `config.vocab_size` and where its weights lie.
"""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from memseq.errors import InputError

__all__ = ["Tokenizer", "as_tokens", "device_of", "fingerprint_weights", "reading"]


@runtime_checkable
class Tokenizer(Protocol):
    """What turns text into token ids and back; anything with these words serves."""

    @property
    def fingerprint(self) -> str:
        """Names the vocabulary, so that a saved stream is not continued with another."""
        ...

    def encode_chunks(self, pieces: Iterable[bytes]) -> Iterator[Any]:
        """Ids of an endless text, cut where the ids do not depend on the cut."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...


@contextmanager
def reading(model: nn.Module) -> Generator[None]:
    """Without gradients and without dropout inside the block; afterwards the modules are in the mode they were in.

    `no_grad`, never `inference_mode`: a memory may take gradients of its own while it reads, and a state that was read
    under inference mode could not enter training.
    """
    training = [module for module in model.modules() if module.training] if model.training else []
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights lie; the host for a model that has none."""
    weight = next(model.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def as_tokens(model: nn.Module, tokens: Any) -> Tensor:
    """Token ids [T] as int64 on the model's device, or features [T, D] as they are, checked.

    Raises `InputError` for what is neither, and for ids outside the model's vocabulary.
    """
    if not isinstance(tokens, Tensor):
        try:
            values = np.array(tokens)  # a copy: what the caller holds may be read-only or change
            # an empty list has no type of its own: it is no tokens, not no features
            tokens = torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "ui" or values.size == 0 else values)
        except (TypeError, ValueError):
            raise InputError(f"token ids are a one-dimensional tensor or a list of integers, got {_shown(tokens)}") from None
    if tokens.is_floating_point():
        if tokens.ndim != 2:
            raise InputError(f"features of one sequence have the shape [T, D], got {list(tokens.shape)}")
        return tokens.to(device_of(model))
    if tokens.ndim != 1 or tokens.dtype == torch.bool:
        raise InputError(f"token ids of one sequence are integers of shape [T], got {tokens.dtype} of shape {list(tokens.shape)}")
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if size is not None and tokens.numel():
        low, high = (int(t) for t in tokens.aminmax())
        if low < 0 or high >= size:
            raise InputError(
                f"the model knows token ids 0 to {size - 1}, got {low if low < 0 else high}; encode with the tokenizer it was trained with"
            )
    return tokens.to(device_of(model), torch.int64)


def fingerprint_weights(model: nn.Module) -> str:
    """Sixteen hex digits that name a model's weights: their names, shapes, dtypes, and 64 values of each.

    Training moves all values of a tensor at once, so a few tell two checkpoints apart without reading the whole.
    """
    digest = sha256()
    for name, t in sorted(model.state_dict().items()):
        digest.update(f"{name} {t.dtype} {list(t.shape)}".encode())
        if isinstance(t, Tensor) and t.numel():
            places = torch.linspace(0, t.numel() - 1, min(64, t.numel()), dtype=torch.float64).long()
            digest.update(repr(t.detach().flatten()[places.to(t.device)].double().tolist()).encode())
    return digest.hexdigest()[:16]


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"

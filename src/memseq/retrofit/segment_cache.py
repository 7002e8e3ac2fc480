"""The cache of an open segment where a transformers model expects its cache of keys and values; nothing is written in place.

A model of transformers calls `cache.update(keys, values, layer)` and attends to what it is given back. Here that is a state of
fixed size with the new keys in their slots: a new tensor, so that the state that was given stays as it is and gradients pass.
Slot i holds input i of the segment, in every row; rows may be at positions of their own (a mask then hides what is not theirs).
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.errors import InputError, MissingExtraError
from memseq.layers.rotary import shared

try:
    from transformers.cache_utils import Cache, CacheLayerMixin
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["KeysAndValues", "SegmentCache"]


class KeysAndValues(NamedTuple):
    """The state: of every layer a tensor of its own, since heads may differ."""

    keys: tuple[Float[Tensor, "B H S K"], ...]
    values: tuple[Float[Tensor, "B H S V"], ...]
    position: Int[Tensor, "B"]  # inputs read in the open segment, on the host


class _Layer(CacheLayerMixin):
    """One layer's keys and values, as they were and then as they are with the new ones."""

    supports_early_init = False
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.position = keys, values, position
        self.start, self.longest = shared(position), int(position.max())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys, keys = self._written(cast(Tensor, self.keys), key_states)
        self.values, values = self._written(cast(Tensor, self.values), value_states)
        return keys, values

    def _written(self, kept: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept with the new in its slots, and the slots in use, in the dtype of the computation."""
        n, own = new.shape[2], new.to(kept.dtype)  # under autocast the state keeps the dtype of the weights
        if self.start is not None:
            kept = kept.slice_scatter(own, 2, self.start, self.start + n)
        else:
            slots = (self.position[:, None] + torch.arange(n)).to(new.device)[:, None, :, None].expand_as(own)
            kept = kept.scatter(2, slots, own)
        return kept, kept[:, :, : self.longest + n].to(new.dtype)

    def get_seq_length(self) -> int:
        return self.longest

    def get_max_length(self) -> int:
        return cast(Tensor, self.keys).shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.longest + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise InputError("the cache of a segment is made with its state; use Backbone.init_cache")


class SegmentCache(Cache):
    """Holds a state while a model reads n inputs; `state(n)` is the one after them."""

    def __init__(self, state: KeysAndValues) -> None:
        self._position = state.position
        self._made = [_Layer(k, v, state.position) for k, v in zip(state.keys, state.values, strict=True)]
        super().__init__(layers=list(self._made))

    def state(self, n: int) -> KeysAndValues:
        keys, values = (tuple(cast(Tensor, getattr(t, name)) for t in self._made) for name in ("keys", "values"))
        return KeysAndValues(keys, values, self._position + n)

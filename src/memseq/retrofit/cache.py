"""A state of ours where transformers expects a cache of keys and values.

The holder changes, the states do not: reading replaces the state by the next one and never writes to it, so a copy of a
cache costs nothing until both have read on, and gradients pass through.

Beside the state it keeps, for every stream, how many tokens it has read and a hash of them. With these, `generate` can tell
a prompt that repeats what was read from one that holds new tokens only, and never reads a token twice.
State: the model's, and 24 bytes.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memseq.errors import InputError, MissingExtraError
from memseq.state import State, batch_size, fork, select, state_bytes

try:
    from transformers.cache_utils import Cache, CacheLayerMixin
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["History", "MemseqCache"]

BASE = 6364136223846793005  # odd, so that its powers modulo 2^64 never vanish


class History(NamedTuple):
    """Which tokens a stream has read: their number and sum_i (id_i + 1) BASE^i modulo 2^64."""

    seen: Int[Tensor, "B"]
    power: Int[Tensor, "B"]  # BASE^seen
    hash: Int[Tensor, "B"]


class Stream(NamedTuple):
    """What a cache holds: one state, and one history, of several streams."""

    state: State
    history: History


def nothing_read(rows: int, device: torch.device) -> History:
    """The history of streams that have read nothing."""
    zero = torch.zeros(rows, dtype=torch.int64, device=device)
    return History(zero, zero + 1, zero)


def histories(
    tokens: Int[Tensor, "B T"], valid: Bool[Tensor, "B T"], start: History
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], History]:
    """The number and the hash of the tokens read up to and with each column, and the history after the last one."""
    number = valid.long().cumsum(1)
    steps = torch.where(valid, BASE, 1).cumprod(1)  # int64 products and sums wrap around: the modulus is 2^64
    before = torch.cat([torch.ones_like(steps[:, :1]), steps[:, :-1]], dim=1) * start.power[:, None]
    digests = start.hash[:, None] + ((tokens + 1) * before * valid).cumsum(1)
    return start.seen[:, None] + number, digests, History(start.seen + number[:, -1], start.power * steps[:, -1], digests[:, -1])


def extend(history: History, tokens: Int[Tensor, "B T"], valid: Bool[Tensor, "B T"] | None) -> History:
    """The history after reading `tokens` where `valid`."""
    history = History(*(t.to(tokens.device) for t in history))
    return histories(tokens, torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid, history)[2]


class StreamLayer(CacheLayerMixin):
    """The one layer of a `MemseqCache`."""

    supports_early_init = False

    def __init__(self, stream: Stream | None = None) -> None:
        super().__init__()
        self.stream = stream

    @property
    def batch_size(self) -> int:
        return -1 if self.stream is None else self.stream.history.seen.shape[0]

    def get_seq_length(self) -> int:
        return 0 if self.stream is None else int(self.stream.history.seen.max())

    def get_max_length(self) -> int:
        return -1  # endless

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise InputError("a MemseqCache holds a state, not keys and values; give it to a MemseqForCausalLM only")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise InputError("a MemseqCache holds a state, not keys and values; give it to a MemseqForCausalLM only")

    def reset(self) -> None:
        self.stream = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.stream is not None:
            self.stream = select(self.stream, indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.stream is not None:
            self.stream = fork(self.stream, repeats)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise InputError("a state cannot forget its last tokens; keep a copy of the cache from before, with cache.fork()")

    def offload(self) -> None:
        """A state is small and is used at every token: it stays where it is."""

    def prefetch(self) -> None:
        """A state is small and is used at every token: it is there."""


class MemseqCache(Cache):
    """Pass it as `past_key_values`: the model reads after what it holds and leaves the next state in it.

    >>> cache = MemseqCache()
    >>> model.generate(**tokenizer("Once", return_tensors="pt"), past_key_values=cache, max_new_tokens=8)
    >>> save_state(cache.state, "story.safetensors", model=model.model)
    """

    def __init__(self, state: State | None = None, stream: Stream | None = None) -> None:
        if state is not None:
            rows = batch_size(state)
            if rows is None:
                raise InputError("a state without tensors does not say how many streams it holds; start with an empty MemseqCache()")
            stream = Stream(state, nothing_read(rows, torch.device("cpu")))
        self._layer = StreamLayer(stream)
        super().__init__(layers=[self._layer])

    @property
    def stream(self) -> Stream | None:
        """What is held; None before the first token."""
        return self._layer.stream

    @stream.setter
    def stream(self, stream: Stream | None) -> None:
        self._layer.stream = stream

    @property
    def state(self) -> State:
        """The model's state: what `memseq.save_state` writes and `memseq.Session` continues; None before the first token."""
        return None if self.stream is None else self.stream.state

    def fork(self, copies: int = 1) -> "MemseqCache":
        """Another cache with every stream `copies` times; this one stays as it is."""
        return MemseqCache(stream=None if self.stream is None else fork(self.stream, copies) if copies > 1 else self.stream)

    def state_bytes(self) -> int:
        """Bytes held, the same after a thousand tokens and after a million."""
        return 0 if self.stream is None else state_bytes(self.stream)

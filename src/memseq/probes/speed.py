"""What a stream costs as it grows: latency of one token, tokens read a second, and bytes held, at several lengths.

    for row in stream_costs(model, lengths=(1_000, 16_000)): print(row)

A bounded memory has the same row at every length; a cache of keys and values has not. Lengths are reached by reading
random tokens, so that what is measured was read and not assumed.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from memseq.errors import ConfigError
from memseq.state import State, state_bytes
from memseq.streams import reading

__all__ = ["Cost", "stream_costs"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One stream after `length` tokens."""

    length: int
    step_ms: float  # one more token: the median of several
    read_tokens_per_second: float  # on the way from the previous length to this one
    state_bytes: int


def stream_costs(model: Any, *, lengths: Sequence[int], steps: int = 64, piece: int = 512, seed: int = 0) -> list[Cost]:
    """Read one stream of random tokens up to each of `lengths` and measure it there.

    steps   tokens read one by one at each length; they do not move the stream on
    piece   tokens read at once on the way
    """
    if not lengths or min(lengths) < 1 or steps < 1 or piece < 1:
        raise ConfigError(f"lengths={list(lengths)}, steps={steps} and piece={piece} must each be at least 1")
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(model.config.vocab_size, shape, generator=random).to(device)

    costs, seen = [], 0
    with reading(model):
        state = model.advance(draw(1, piece), model.init_state(1))  # the first call of anything is slow
        for _ in range(3):
            model.step(draw(1), state)
        state = model.init_state(1)
        for length in sorted(lengths):
            began, start = _now(device), seen
            while seen < length:
                tokens = draw(1, min(piece, length - seen))
                state, seen = model.advance(tokens, state), seen + tokens.shape[1]
            spent = _now(device) - began
            held = state_bytes(state)
            costs.append(
                Cost(
                    length=length,
                    step_ms=_step_ms(model, draw(steps, 1), state, device),
                    read_tokens_per_second=(seen - start) / spent if seen > start else float("nan"),
                    state_bytes=held,
                )
            )
    return costs


def _step_ms(model: Any, tokens: Tensor, state: State, device: torch.device) -> float:
    """The median time of one step, in milliseconds, while the stream goes on from `state`, which stays as it is."""
    times = []
    for token in tokens:
        began = _now(device)
        _, state = model.step(token, state)
        times.append(_now(device) - began)
    return 1e3 * median(times)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

"""Streams at different phases in one batch: read with their equals, put back in their places."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from memseq.state import State, select, stack

__all__ = ["by_phase"]


def by_phase(read: Callable[[Tensor, Any], tuple[Tensor, Any]], x: Tensor, state: State, phase: Int[Tensor, "B"]) -> tuple[Tensor, State]:
    """`read(x, state)`, called once for the rows of each value of `phase` (on the host): exact, by the law of streams."""
    groups = [(phase == value).nonzero()[:, 0] for value in phase.unique()]
    if len(groups) == 1:
        return read(x, state)
    done = [read(x[rows.to(x.device)], select(state, rows)) for rows in groups]
    order = torch.cat(groups).argsort()
    return torch.cat([y for y, _ in done])[order.to(x.device)], select(stack([after for _, after in done]), order)

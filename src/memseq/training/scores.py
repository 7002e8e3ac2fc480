"""Held-out loss: every segment read once, states carried, nothing learned."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.state import State, tensors
from memseq.training import distributed
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment

__all__ = ["Scores", "autocast", "evaluate", "measured_dtype", "score", "text_bytes"]


class Scores(NamedTuple):
    """A sum of losses and what it was summed over."""

    nats: float
    tokens: int
    bytes: int | None = None  # of text, where the tokenizer told how long tokens are

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    def line(self, prefix: str = "") -> dict[str, float]:
        """Names and values for a log."""
        found = {"loss": self.loss, "bits_per_token": self.loss / math.log(2)}
        if self.bits_per_byte is not None:
            found["bits_per_byte"] = self.bits_per_byte
        return {prefix + name: value for name, value in found.items()}


def evaluate(model: Memory[Any], segments: Iterable[Segment], *, dtype: str = "float32", token_bytes: Tensor | None = None) -> Scores:
    """The loss of `model` on `segments`, such as `lanes.EachOnce`, summed over all processes."""
    segments = iter(segments)
    first = next(segments, None)
    if first is None:
        return Scores(0.0, 0, None if token_bytes is None else 0)
    with torch.no_grad():
        fresh = model.init_state(len(first.reset))
    cell, device = StreamCell(model), next(model.parameters()).device
    return score(cell.loss, model, fresh, _chain(first, segments), device=device, dtype=dtype, token_bytes=token_bytes)


def score(
    loss: Callable[[Segment, State], tuple[Tensor, State]],
    model: nn.Module,
    state: State,
    segments: Iterable[Segment],
    *,
    device: torch.device,
    dtype: str,
    token_bytes: Tensor | None,
) -> Scores:
    """`evaluate` by a given way to read a segment. All processes read as often as the one with most segments."""
    nats, tokens, text = 0.0, 0, 0
    reading, blank = iter(segments), None
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, dtype):
            while True:
                segment = next(reading, None)
                if not all_alive(segment is not None, device):
                    break
                if segment is None and blank is None:
                    rows = next((t.shape[0] for t in tensors(state)), 1)
                    none = torch.zeros(rows, 1, dtype=torch.int64)
                    blank = Segment(none, none - 100, torch.zeros(rows, dtype=torch.bool))
                segment = segment or blank
                assert segment is not None
                here, state = loss(segment.to(device), state)
                nats += float(here)
                tokens += int((segment.targets != -100).sum())
                text += text_bytes(segment.targets, token_bytes)
    finally:
        model.train(training)
    nats, total, text_total = distributed.all_sum([nats, tokens, text], device)
    return Scores(nats, int(total), int(text_total) if token_bytes is not None else None)


def all_alive(here: bool, device: torch.device) -> bool:
    """Whether any process has something left to read."""
    return distributed.all_sum([here], device)[0] > 0


def text_bytes(targets: Tensor, token_bytes: Tensor | None) -> int:
    """Bytes of text that the scored targets stand for."""
    return 0 if token_bytes is None else int(token_bytes[targets[targets != -100]].sum())


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """The region in which products are computed in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def measured_dtype(device: torch.device | str = "cpu") -> str:
    """ "bfloat16" where one product of it is clearly faster than of float32, as on processors with bf16 instructions; always on CUDA."""
    from time import perf_counter

    if torch.device(device).type == "cuda":
        return "bfloat16"
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(8):
            began = perf_counter()
            a @ a
            times.append(perf_counter() - began)
        best[dtype] = min(times[2:])
    return "bfloat16" if 1.3 * best[torch.bfloat16] < best[torch.float32] else "float32"


def _chain(first: Segment, rest: Iterable[Segment]) -> Iterable[Segment]:
    yield first
    yield from rest

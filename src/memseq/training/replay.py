"""Memory replay back-propagation: the gradients of full back-propagation through time, one segment's activations alive.

Source: Memformer (Wu et al., arXiv:2010.06891), algorithm 1; here with one joint backward per segment, any schedule of
kept states, and everything that a segment may read besides its state put back for the replay.

    s_{t+1}, L_t = cell(x_t, s_t),   t = 0 .. S-1        L = sum_t L_t
    forward, without a graph:  keep s_0 .. s_{S-1}        (S-1 steps; s_S comes from the first segment replayed)
    backward, t = S-1 .. 0:    g_t = d L_t / d s_t + (d s_{t+1} / d s_t)^T g_{t+1}
                               d L / d theta += d L_t / d theta + (d s_{t+1} / d theta)^T g_{t+1}

Cost: two forwards (the first without head and loss) and one backward per segment. Memory: the states that the schedule
keeps and one segment. `replay_scan` is the same for losses that couple segments; `checkpointed_loss` is a chain of torch's
own checkpoints, which any engine can drive.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from memseq.errors import InputError, StateError
from memseq.state import State, detach, leaf_names, map_state, tensors
from memseq.training.cell import Cell, Segments
from memseq.training.guards import Agree, Finite, check_loss, check_start, compare, differentiable, sum_losses
from memseq.training.schedules import KeepAll, Schedule, rewind
from memseq.training.surroundings import Surroundings
from memseq.training.sync import Sync, entries, sync_of

__all__ = ["CheckpointedWindow", "Replayed", "checkpointed_loss", "replay_backward"]


class Replayed(NamedTuple):
    """What a replayed window gave, besides the gradients it left in `.grad`."""

    loss: Float[Tensor, ""]  # the sum over all segments, unscaled, without a graph
    state: State  # after the last segment, without a graph: the next window starts here


def replay_backward(
    cell: Cell | nn.Module,
    segments: Segments,
    state: State,
    *,
    scale: float | Tensor = 1.0,
    schedule: Schedule = KeepAll(),  # noqa: B008 (frozen)
    cotangent: State | None = None,
    verify: bool = False,
    sync: Sync | None = None,
    agree: Agree | None = None,
) -> Replayed:
    """Add to `.grad` what `(scale * total_loss).backward()` through all segments would, one segment at a time.

    `segments` is read from both ends, so it must give the same segment twice. If `state` has a graph, it gets its gradient
    too. `cotangent`, a tree like `state` with None for what has none, is d(later losses) / d(final state); `scale`
    multiplies it as well. `verify` compares every replayed state with the kept one. `sync(is_last)` is entered around the forward and
    backward of each replayed segment; for DistributedDataParallel and FSDP2 modules it is found by itself (`sync.py`).
    `agree(well)`, called once a window before any gradient exists, tells each process whether all are well, so that they skip a window
    that is not finite together (`distributed.all_well`).

    Raises `TrainingError` where a state or a loss is not finite (a state: before any gradient is touched) or a replay
    differs, `StateError` where a kept state was written to.
    """
    total = len(segments)
    check_start(state, total)
    sync = sync or sync_of(cell)
    forward, advance = entries(cell)
    around, finite = Surroundings(cell, state), Finite(state)

    def ahead(t: int, s: State) -> State:
        with torch.no_grad():
            s = detach(advance(segments[t], s))
        finite.note(t, s)
        return s

    later = _given(cotangent, state, scale)
    losses: list[Tensor] = []
    final = following = after = None
    try:
        for t, before in rewind(ahead, detach(state), total, schedule, around):
            start = leaves_of(before) if t else state  # s_0 keeps its graph, so that what made it is reached in the same backward
            with sync(t == 0) as reached, torch.enable_grad():
                torch.clear_autocast_cache()  # in older torch a cast made without a graph serves here too (pytorch#65766)
                loss, end = forward(segments[t], start)
                check_loss(loss)
                if final is None:
                    after, final = around.save(), detach(end)
                    finite.note(t, final, loss)
                    finite.check(total, agree)
                elif verify:
                    compare(t, end, following)
                _backward(loss, end, later, scale, reached)
            losses.append(loss.detach())
            later = [s.grad for s in tensors(start)] if t else []
            following = before if verify else None
            del loss, end, start, before
    finally:
        if after is not None:
            around.restore(after)
        torch.clear_autocast_cache()
    around.warn()
    return Replayed(sum_losses(losses[::-1]), final)


def checkpointed_loss(cell: Cell | nn.Module, segments: Segments | Iterable[Any], state: State) -> tuple[Float[Tensor, ""], State]:
    """The window's loss with its graph, and the state after it: a chain of checkpoints, one per segment.

    One `.backward()` gives the same gradients as `replay_backward` under any engine that drives a single forward and
    backward; where an engine wraps modules, let it wrap `CheckpointedWindow`.
    """
    forward, _ = entries(cell)
    around = Surroundings(cell, state)
    losses: list[Tensor] = []
    for segment in segments:
        loss, state = checkpoint(_twice(forward, around), segment, state, use_reentrant=False, preserve_rng_state=False)
        losses.append(loss)
    if not losses:
        raise InputError("a window needs at least one segment, got none")
    return torch.stack(losses).sum(), state


class CheckpointedWindow(nn.Module):
    """`checkpointed_loss` as one module: what to wrap for an engine that drives a single forward and backward."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, segments: Segments, state: State) -> tuple[Float[Tensor, ""], State]:
        return checkpointed_loss(self.cell, segments, state)


def _twice(forward: Callable[..., Any], around: Surroundings) -> Callable[..., Any]:
    """`forward`, whose second call (the recomputation) sees the surroundings of the first and leaves no trace in them."""
    before = around.save()
    first = True

    def run(segment: Any, state: State) -> Any:
        nonlocal first
        if first:
            first = False
            return forward(segment, state)
        outside = around.save()
        around.restore(before)
        try:
            return forward(segment, state)
        finally:
            around.restore(outside)

    return run


def leaves_of(state: State) -> State:
    """The state as the start of a graph; integer and boolean leaves pass through."""
    return map_state(lambda t: t.detach().requires_grad_(differentiable(t)), state)


@contextmanager
def no_autocast(device: torch.device) -> Generator[None, None, None]:
    """For a backward: inside a region of autocast it would round the products of float32 states to lower precision."""
    with torch.autocast(device.type, enabled=False), torch.autocast("cpu", enabled=False):
        yield


def _given(cotangent: State | None, state: State, scale: float | Tensor) -> list[Tensor | None]:
    """The cotangents of the final state's leaves, scaled as the losses are."""
    if cotangent is None:
        return [None] * len(tensors(state))
    given = pytree.tree_leaves(cotangent)
    if len(given) != len(tensors(state)):
        raise StateError(f"the cotangent has {len(given)} leaves and the state {len(tensors(state))} ({', '.join(leaf_names(state))})")
    return [g * scale if g is not None and differentiable(g) else None for g in given]


def _backward(loss: Tensor, end: State, later: list[Tensor | None], scale: float | Tensor, reached: list[Tensor] | None) -> None:
    """One joint backward from the segment's loss and from every leaf of its end state that later losses depend on.

    Equal to the backward of scale * loss + sum(end * later), without computing that number. Where an engine waits for the
    segment's gradients, `reached` is not None: the whole end state and all of `reached` take part, if only with zeros.
    """
    if reached is not None:
        later = [_zeros(s) if g is None else g for s, g in zip(tensors(end), later, strict=True)]
    roots = [(loss, torch.ones_like(loss) * scale)] if loss.requires_grad else []
    roots += [(s, g) for s, g in zip(tensors(end), later, strict=True) if g is not None and s.requires_grad]
    roots += [(p, _zeros(p)) for p in reached or ()]
    if roots:
        with no_autocast(loss.device):
            outputs, cotangents = zip(*roots, strict=True)
            torch.autograd.backward(outputs, cotangents)


def _zeros(t: Tensor) -> Tensor:
    return t.new_zeros(()).expand_as(t)

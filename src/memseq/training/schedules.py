"""Which states a replay keeps, where they lie, and how the others come back.

Sources: keeping every state is Memformer's memory replay (arXiv:2010.06891, algorithm 1); keeping every sqrt(S)-th is
Chen et al., arXiv:1604.06174; binomial checkpointing is Griewank and Walther, ACM TOMS 26 (2000), "Revolve".

A replay of S segments needs the states s_{S-1}, ..., s_1, s_0 in this order: s_t is the state before segment t. `rewind`
hands them out. It starts from the last state that is kept, reads on without a graph to the one that is due, and asks the
schedule one question on the way: which of the states that pass by shall stay? The answers are all that differs:

    schedule          states kept at most                steps without a graph
    KeepAll           S - 1                              S - 1
    Sqrt              about 2 sqrt(S)                    less than 2 S
    Revolve(slots=c)  c                                  r S - C(c+r, c+1), the least that c states allow,
                                                         where C(c+r-1, c) < S <= C(c+r, c)
    Offload(inner)    as `inner`, on the host            as `inner`

The state that is due is held beside the kept ones, and one copy of each random generator goes with every kept state.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from math import comb, isqrt
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from memseq.errors import ConfigError, StateError
from memseq.state import State, leaf_names, map_state, tensors
from memseq.training.surroundings import Surroundings

__all__ = ["KeepAll", "Offload", "Revolve", "Schedule", "Sqrt", "revolve_steps", "rewind"]


@runtime_checkable
class Shelf(Protocol):
    """Where kept states lie."""

    def put(self, state: State) -> Any: ...  # a ticket for `get`
    def prefetch(self, ticket: Any) -> None: ...  # `get` will be called with this ticket next
    def get(self, ticket: Any) -> State: ...


@runtime_checkable
class Schedule(Protocol):
    """A choice of the states to keep."""

    def keep(self, start: int, due: int, total: int, held: int) -> Collection[int]:
        """The indices t, start < t < due, of the states to keep on the way from s_start, which is kept, to s_due.

        `total` is S; `held` counts the states kept so far, s_start among them.
        """
        ...

    def shelf(self) -> Shelf: ...


def rewind(
    advance: Callable[[int, State], State], state: State, total: int, schedule: Schedule, around: Surroundings
) -> Iterator[tuple[int, State]]:
    """(t, s_t) for t = S-1, ..., 0, with the surroundings put back to what they were before segment t was first read.

    `advance(t, s_t)` gives s_{t+1} without a graph. Nothing is held for a state once it has been handed out.
    """
    shelf = schedule.shelf()
    kept = [(0, shelf.put(state), around.save())]
    for due in reversed(range(total)):
        start, ticket, before = kept[-1]
        state = shelf.get(ticket)
        if due < total - 1:
            around.restore(before)
        keep = schedule.keep(start, due, total, len(kept))
        for t in range(start, due):
            state = advance(t, state)
            if t + 1 in keep:
                kept.append((t + 1, shelf.put(state), around.save()))
        if start == due:
            kept.pop()
        if kept:
            shelf.prefetch(kept[-1][1])
        del ticket, before
        yield due, state


class Here:
    """Kept states stay where they are; a state that was written to meanwhile is refused."""

    def put(self, state: State) -> tuple[State, list[int]]:
        return state, [t._version for t in tensors(state)]

    def prefetch(self, ticket: tuple[State, list[int]]) -> None:
        pass

    def get(self, ticket: tuple[State, list[int]]) -> State:
        state, versions = ticket
        if (now := [t._version for t in tensors(state)]) != versions:
            name, writes = next((n, b - a) for n, a, b in zip(leaf_names(state), versions, now, strict=True) if a != b)
            raise StateError(
                f"the state leaf {name!r} was written in place after it was kept for the replay ({writes} writes);"
                " a memory must return new tensors and leave the state it is given as it is: clone the leaf before writing"
            )
        return state


@dataclass
class HostCopy:
    host: State
    back: State = None  # on its device again, once prefetched
    ready: torch.cuda.Event | None = None


class OnHost:
    """Kept states lie in host memory; on CUDA it is pinned, and copies run on a side stream beside the computation."""

    def __init__(self) -> None:
        self.side: dict[torch.device, torch.cuda.Stream] = {}

    def put(self, state: State) -> tuple[State, HostCopy]:
        devices = map_state(lambda t: t.device, state)
        return devices, HostCopy(map_state(self._down, state))

    def prefetch(self, ticket: tuple[State, HostCopy]) -> None:
        devices, copy = ticket
        if copy.back is None:
            copy.back = map_state(self._up, copy.host, devices)

    def get(self, ticket: tuple[State, HostCopy]) -> State:
        self.prefetch(ticket)
        copy = ticket[1]
        state, copy.back = copy.back, None
        for t in tensors(state):
            if t.is_cuda:
                torch.cuda.current_stream(t.device).wait_stream(self._stream(t.device))
                t.record_stream(torch.cuda.current_stream(t.device))
        return state

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self.side:
            self.side[device] = torch.cuda.Stream(device)
        return self.side[device]

    def _down(self, t: Tensor) -> Tensor:
        if not t.is_cuda:
            return _compact(t, torch.Tensor.clone if t.device.type == "cpu" else torch.Tensor.cpu)
        side = self._stream(t.device)
        side.wait_stream(torch.cuda.current_stream(t.device))
        with torch.cuda.stream(side):
            t.record_stream(side)  # its memory is not reused before the copy is done
            return _compact(t, lambda own: torch.empty(own.shape, dtype=own.dtype, pin_memory=True).copy_(own, non_blocking=True))

    def _up(self, host: Tensor, device: torch.device) -> Tensor:
        if device.type != "cuda":
            return host.to(device)
        with torch.cuda.stream(self._stream(device)):
            return _compact(host, lambda own: own.to(device, non_blocking=True))


def _compact(t: Tensor, copy: Callable[[Tensor], Tensor]) -> Tensor:
    """`copy` of what an expanded tensor stores, shown in the full shape again."""
    own = t[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in t.stride())]
    return copy(own).expand(t.shape)


@dataclass(frozen=True, kw_only=True)
class KeepAll:
    """Keep every state: no segment is read without a graph more than once."""

    def keep(self, start: int, due: int, total: int, held: int) -> Collection[int]:
        return range(start + 1, due)

    def shelf(self) -> Shelf:
        return Here()


@dataclass(frozen=True, kw_only=True)
class Sqrt:
    """Keep every sqrt(S)-th state, and all of one block of sqrt(S) segments while that block is replayed."""

    def keep(self, start: int, due: int, total: int, held: int) -> Collection[int]:
        length = isqrt(total - 1) + 1  # sqrt(S) rounded up
        block = due - due % length
        return {t for t in range(start + 1, due) if t % length == 0 or t > block}

    def shelf(self) -> Shelf:
        return Here()


@dataclass(frozen=True, kw_only=True)
class Revolve:
    """Keep at most `slots` states, s_0 among them, and read the fewest segments again that this allows."""

    slots: int

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ConfigError(f"Revolve needs at least 1 slot, for the first state, got slots={self.slots}")

    def keep(self, start: int, due: int, total: int, held: int) -> Collection[int]:
        kept, slots, left = set(), self.slots - held + 1, due + 1 - start
        while slots > 1 and left > 2:
            ahead = _split(left, slots)
            start, slots, left = start + ahead, slots - 1, left - ahead
            if start < due:
                kept.add(start)
        return kept

    def shelf(self) -> Shelf:
        return Here()


@dataclass(frozen=True, kw_only=True)
class Offload:
    """Keep the states that `inner` keeps, in host memory and in their own dtype, so that the gradients stay exact."""

    inner: Schedule = KeepAll()

    def keep(self, start: int, due: int, total: int, held: int) -> Collection[int]:
        return self.inner.keep(start, due, total, held)

    def shelf(self) -> Shelf:
        return OnHost()


def revolve_steps(segments: int, slots: int) -> int:
    """The least number of segments read without a graph to replay `segments` with `slots` kept states.

    >>> [revolve_steps(64, slots) for slots in (2, 4, 8, 16, 63)]
    [420, 200, 137, 110, 63]
    """
    r = _repeats(segments, slots)
    return r * segments - comb(slots + r, slots + 1)


def _repeats(segments: int, slots: int) -> int:
    """The r with C(slots+r-1, slots) < segments <= C(slots+r, slots): how often a segment is read without a graph at most."""
    r = 0
    while comb(slots + r, slots) < segments:
        r += 1
    return r


def _split(segments: int, slots: int) -> int:
    """How far to read on before keeping the next state: m minimising m + steps(segments - m, slots - 1) + steps(m, slots)."""
    r = _repeats(segments, slots)
    shortest = comb(slots + r - 2, slots) if r > 1 else 0
    return max(1, shortest, segments - comb(slots - 1 + r, slots - 1))

"""A schedule hands out every state once, in reverse, with the states and the steps that theory allows."""

from functools import cache
from math import isqrt

import pytest
import torch

from memseq.contract import empty
from memseq.errors import ConfigError, StateError
from memseq.state import state_bytes, tensors
from memseq.training.schedules import Here, KeepAll, Offload, Revolve, Schedule, Sqrt, revolve_steps, rewind
from memseq.training.surroundings import Surroundings

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 10, 16, 17, 31, 64]
SCHEDULES = [KeepAll(), Sqrt(), *(Revolve(slots=c) for c in (1, 2, 3, 5, 8, 100)), Offload(), Offload(inner=Revolve(slots=3))]


def run(schedule: Schedule, total: int) -> tuple[list[tuple[int, int]], int, int]:
    """What is handed out as (t, value of s_t), the number of steps, and the most states kept at once."""
    steps = most = 0

    class Counted:
        """The schedule, with an eye on how many states it holds."""

        def keep(self, start, due, total, held):
            nonlocal most
            kept = schedule.keep(start, due, total, held)
            assert all(start < t < due for t in kept)
            most = max(most, held + len(set(kept)))
            return kept

        def shelf(self):
            return schedule.shelf()

    def advance(t, state):
        nonlocal steps
        steps += 1
        assert int(state[0]) == t
        return (state[0] + 1,)

    state = (torch.zeros(1, dtype=torch.int64),)
    handed = [(t, int(s[0])) for t, s in rewind(advance, state, total, Counted(), Surroundings(None, state))]
    return handed, steps, most


@pytest.mark.parametrize("total", SIZES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_state_comes_once_in_reverse(schedule, total):
    assert run(schedule, total)[0] == [(t, t) for t in reversed(range(total))]


@pytest.mark.parametrize("total", SIZES)
def test_keeping_all_reads_no_segment_twice(total):
    _, steps, most = run(KeepAll(), total)
    assert steps == total - 1
    assert most == max(1, total - 1)


@pytest.mark.parametrize("total", [*SIZES, 100, 256])
def test_sqrt_keeps_two_sqrt_states_and_reads_less_than_once_more(total):
    _, steps, most = run(Sqrt(), total)
    root = isqrt(total - 1) + 1
    assert most <= 2 * root
    assert steps <= 2 * (total - 1)


@cache
def fewest(segments: int, slots: int) -> int:
    """The least number of steps, by trying every place of the next kept state."""
    if segments == 1:
        return 0
    if slots == 1:
        return segments * (segments - 1) // 2
    return min(m + fewest(segments - m, slots - 1) + fewest(m, slots) for m in range(1, segments))


@pytest.mark.parametrize("slots", range(1, 9))
def test_revolve_takes_the_fewest_steps_there_are(slots):
    for segments in range(1, 60):
        assert revolve_steps(segments, slots) == fewest(segments, slots)
    for segments in (1, 2, 3, 5, 6, 10, 21, 34, 59, 64):
        _, steps, most = run(Revolve(slots=slots), segments)
        assert steps == revolve_steps(segments, slots)
        assert most <= slots


def test_the_published_numbers_of_revolve():
    assert [revolve_steps(64, c) for c in (2, 4, 8, 16)] == [420, 200, 137, 110]
    assert [revolve_steps(1024, c) for c in (8, 32)] == [4405, 2477]
    assert run(Revolve(slots=32), 1024)[1:] == (2477, 32)


def test_offload_returns_what_was_put_down_and_does_not_follow_later_writes():
    state = (torch.randn(2, 3), torch.arange(2), torch.tensor([True, False]), empty(torch.zeros(()), 2, 1000))
    shelf = Offload().shelf()
    ticket = shelf.put(state)
    before = [t.clone() for t in tensors(state)]
    state[0].zero_()
    shelf.prefetch(ticket)
    back = shelf.get(ticket)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(tensors(back), before, strict=True))
    assert state_bytes(back) == state_bytes(state)  # an empty buffer stays an empty buffer


def test_a_kept_state_that_was_written_to_is_refused_by_name():
    state = {"memory": torch.zeros(2), "count": torch.zeros(2, dtype=torch.int64)}
    ticket = Here().put(state)
    assert Here().get(ticket) is state
    state["count"] += 1
    with pytest.raises(StateError, match=r"'count' was written in place after it was kept .* \(1 writes\)"):
        Here().get(ticket)


def test_revolve_needs_a_slot():
    with pytest.raises(ConfigError, match="at least 1 slot"):
        Revolve(slots=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned copies on a side stream need a CUDA device")
def test_on_cuda_offloaded_states_lie_in_pinned_memory_and_return_whole():
    shelf = Offload().shelf()
    states = [(torch.full((1 << 20,), float(i), device="cuda"), torch.tensor([i])) for i in range(8)]
    tickets = [shelf.put(s) for s in states]
    del states
    for i in reversed(range(8)):
        assert tickets[i][1].host[0].is_pinned()
        if i:
            shelf.prefetch(tickets[i - 1])
        back = shelf.get(tickets[i])
        assert back[0].is_cuda
        assert bool((back[0] == i).all())
        assert int(back[1]) == i

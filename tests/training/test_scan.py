"""`replay_scan` is a loop over the segments to autograd: any loss, any series of models, with one segment's graph alive."""

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import InputError, TrainingError
from memseq.state import detach, tensors
from memseq.training.live_bytes import LiveBytes
from memseq.training.scan import replay_scan
from memseq.training.schedules import KeepAll, Offload, Revolve, Sqrt

B, L, D = 2, 3, 5
SCHEDULES = [KeepAll(), Sqrt(), Revolve(slots=2), Offload()]


class State(NamedTuple):
    h: Tensor
    count: Tensor


class Step(nn.Module):
    """Reads x [B, L, D] token by token, with dropout; its first output is its state, the very same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(D, D, dtype=torch.float64), nn.Linear(D, D, dtype=torch.float64)

    def forward(self, x: Tensor, state: State) -> tuple[dict[str, Tensor], State]:
        h, hs = state.h, []
        for x_t in F.dropout(x, 0.2, self.training).unbind(1):
            h = self.cell(x_t, h)
            hs.append(h)
        return {"h": h, "y": self.out(torch.stack(hs, 1)), "ids": state.count + 1}, State(h, state.count + L)


def given(n: int = 5) -> tuple[list[Tensor], State]:
    xs = [torch.randn(B, L, D, dtype=torch.float64, requires_grad=True) for _ in range(n)]
    return xs, State(torch.randn(B, D, dtype=torch.float64, requires_grad=True), torch.zeros(B, dtype=torch.int64))


def loop(step, segments, state, **_):
    """The definition."""
    outputs = []
    for x in segments:
        y, state = step(x, state)
        outputs.append(y)
    return outputs, state


def coupled(outputs, state) -> Tensor:
    """A loss in which every segment meets every other, and the final state too."""
    pooled = torch.stack([y["h"].mean(0) for y in outputs])
    return (pooled @ pooled.T).logsumexp(-1).sum() + torch.cat([y["y"] for y in outputs], 1).std() + state.h.pow(3).sum()


def results(scan, step, **options):
    torch.manual_seed(1)
    xs, state = given()
    outputs, end = scan(step, xs, state, **options)
    loss = coupled(outputs, end)
    after = torch.rand(())
    grads = torch.autograd.grad(loss, [*xs, state.h, *step.parameters()])
    return [loss, after, *tensors(outputs), *tensors(end)], grads


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_scan_is_a_loop(schedule):
    step = Step()
    ours, our_grads = results(replay_scan, step, schedule=schedule)
    theirs, their_grads = results(loop, step)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert_close(our_grads, their_grads, rtol=1e-9, atol=1e-12)


def test_two_recurrent_models_in_series():
    first, second = Step(), Step()

    def run(scan):
        torch.manual_seed(2)
        xs, state = given()
        middle, end = scan(first, xs, state)
        outputs, last = scan(second, [y["y"] for y in middle], State(end.h.tanh(), end.count))
        return torch.autograd.grad(coupled(outputs, last), [*xs, state.h, *first.parameters(), *second.parameters()])

    assert_close(run(replay_scan), run(loop), rtol=1e-9, atol=1e-12)


def test_outputs_that_the_loss_leaves_out():
    step, (xs, state) = Step().eval(), given()
    for choose in (lambda ys, s: ys[1]["y"].sum(), lambda ys, s: s.h.sum()):
        ours, theirs = (
            torch.autograd.grad(choose(*scan(step, xs, state)), [xs[0], state.h, *step.cell.parameters()]) for scan in (replay_scan, loop)
        )
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_random_streams_outside_are_not_disturbed_by_the_backward():
    step, (xs, state) = Step(), given()
    outputs, end = replay_scan(step, xs, state)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    coupled(outputs, end).backward()
    assert torch.equal(torch.rand(3), expected)


def test_under_autocast_the_backward_replays_the_same_numbers():
    step, (xs, state) = Step().float().eval(), given()
    xs, state = [x.detach().float() for x in xs], State(state.h.detach().float(), state.count)

    def run(scan):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = coupled(*scan(step, xs, state))
        return torch.autograd.grad(loss, list(step.parameters()))

    for a, b in zip(run(replay_scan), run(loop), strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


def test_functions_name_their_parameters():
    step, (xs, state) = Step(), given()
    plain = lambda x, s: step(x, s)  # noqa: E731
    with pytest.raises(InputError, match=r"name them with parameters="):
        replay_scan(plain, xs, state)
    torch.manual_seed(0)
    coupled(*replay_scan(plain, xs, state, parameters=step.parameters())).backward()
    ours = [p.grad.clone() for p in step.parameters()]
    step.zero_grad()
    torch.manual_seed(0)
    coupled(*replay_scan(step.forward, xs, state)).backward()  # a method of a module finds them
    assert_close(ours, [p.grad for p in step.parameters()])


def test_what_replay_cannot_do_says_so():
    step, (xs, state) = Step(), given()
    loss = coupled(*replay_scan(step, xs, state))
    with pytest.raises(TrainingError, match="no second derivative"):
        torch.autograd.grad(loss, xs, create_graph=True)
    loss = coupled(*replay_scan(step, xs, state))
    loss.backward(retain_graph=True)
    with pytest.raises(TrainingError, match="one replay_scan serves one backward"):
        loss.backward()
    with pytest.raises(InputError, match="at least one segment"):
        replay_scan(step, [], state)
    with pytest.raises(InputError, match=r"must be tensors, got \['Tensor', 'str'\]"):
        replay_scan(lambda x, s: ("text", s), xs, state, parameters=[])


def test_nothing_is_held_once_the_outputs_are_gone():
    step, (xs, state) = Step(), given()
    outputs, end = replay_scan(step, xs, detach(state))
    held = weakref.ref(outputs[0]["y"].grad_fn)
    assert held() is not None
    gc.disable()  # no cycle either: freed at once
    try:
        del outputs, end
        assert held() is None
    finally:
        gc.enable()


def test_memory_is_outputs_and_states_not_activations():
    step, (xs, state) = Step().eval(), given(32)
    peaks = []
    for scan in (replay_scan, loop):
        with LiveBytes() as held:
            outputs, end = scan(step, [x.detach() for x in xs], detach(state))
            sum(y["y"].sum() for y in outputs).backward()
        peaks.append(held.peak)
        del outputs, end
    assert peaks[1] > 3 * peaks[0]

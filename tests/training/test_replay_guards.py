"""What would make a replay wrong without a word is an error that says so, or is put right."""

import pytest
import torch
from cells import B, D, GRUCell, L, segments
from torch import nn
from torch.testing import assert_close

from memseq.errors import InputError, StateError, TrainingError
from memseq.state import map_state
from memseq.training.replay import checkpointed_loss, replay_backward
from memseq.training.schedules import KeepAll, Offload, Revolve, Sqrt

SCHEDULES = [KeepAll(), Sqrt(), Revolve(slots=1), Revolve(slots=3), Offload()]


def test_a_state_written_in_place_is_named():
    class Writes(GRUCell):
        def advance(self, x, state):
            new = super().advance(x, state)
            state[0].add_(1.0)
            return new

    with pytest.raises(StateError, match=r"leaf '0' was written in place .* clone"):
        replay_backward(Writes(), segments(3), (torch.zeros(B, D, dtype=torch.float64),))


def test_a_state_that_is_not_finite_stops_before_any_gradient():
    class Overflows(GRUCell):
        def advance(self, x, state):
            return tuple(s / (0.0 if (x == 9).all() else 1.0) for s in super().advance(x, state))

    cell, xs = Overflows(), segments(6)
    xs[2] = torch.full_like(xs[2], 9.0)
    with pytest.raises(TrainingError, match="segment 2 of 6 left a state or a loss that is not finite; no gradient was touched"):
        replay_backward(cell, xs, cell.init_state())
    assert all(p.grad is None for p in cell.parameters())


def test_a_loss_that_is_not_finite_names_its_segment():
    class Nan(GRUCell):
        def loss(self, x, state):
            loss, state = super().loss(x, state)
            return loss * (float("nan") if (x == 9).all() else 1.0), state

    for t in (1, 3):
        cell, xs = Nan(), segments(4)
        xs[t] = torch.full_like(xs[t], 9.0)
        with pytest.raises(TrainingError, match=f"segment {t} of 4"):
            replay_backward(cell, xs, cell.init_state())


def test_the_logarithm_of_nothing_is_a_fine_state():
    class Peak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(D, dtype=torch.float64))

        def loss(self, x, state):
            peak = torch.logaddexp(state[0], (x * self.weight).sum(1)) if (x > 0).any() else state[0]
            return peak.exp().sum(), (peak,)

        def advance(self, x, state):
            return self.loss(x, state)[1]

    cell, xs = Peak(), [torch.zeros(B, L, D, dtype=torch.float64), *segments(2)]
    state = (torch.full((B, D), -torch.inf, dtype=torch.float64),)
    total = 0.0
    end = state
    for x in xs:
        loss, end = cell.loss(x, end)
        total = total + loss
    (expected,) = torch.autograd.grad(total, cell.weight)
    replay_backward(cell, xs, state)
    assert_close(cell.weight.grad, expected, rtol=1e-9, atol=1e-12)


def test_verify_finds_a_replay_that_arrives_elsewhere():
    class Forgetful(GRUCell):
        def loss(self, x, state):
            torch.rand(())  # the loss draws before the state does: `advance` cannot know
            return super().loss(x + 0.1 * torch.rand(()), state)

        def advance(self, x, state):
            return super().advance(x + 0.1 * torch.rand(()), state)

    cell = Forgetful()
    with pytest.raises(TrainingError, match=r"segment 1 was replayed to another state .* leaf '0' differs by max \|delta\| = "):
        replay_backward(cell, segments(3), cell.init_state(), verify=True)


def test_buffers_are_updated_once_and_named():
    class Normed(GRUCell):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(D, dtype=torch.float64)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def read(self, x, state):
            self.calls = self.calls + 1  # another tensor each time; the batch norm writes in place
            return super().read(self.norm(x.mT).mT * (1 + self.norm.running_mean.norm()), state)

    cell, xs = Normed(), segments(5)
    for schedule in SCHEDULES:
        once, twin = Normed(), Normed()
        once.load_state_dict(cell.state_dict()), twin.load_state_dict(cell.state_dict())
        # the definition, where every segment reads the running mean as it was: clone it, since autograd forbids the write
        total, state = 0.0, once.init_state()
        for x in xs:
            read, mean = once.norm.running_mean, once.norm.running_mean.clone()
            once.norm.running_mean = mean
            loss, state = once.loss(x, state)
            once.norm.running_mean = read.copy_(mean)
            total = total + loss
        with pytest.warns(UserWarning, match=r"writes to the buffers calls, norm.num_batches_tracked, norm.running_mean, norm.running_var"):
            replayed = replay_backward(twin, xs, twin.init_state(), schedule=schedule, verify=True)
        assert_close(replayed.loss, total.detach())
        assert_close(dict(twin.named_buffers()), dict(once.named_buffers()), rtol=1e-12, atol=1e-14)
        assert twin.calls == 5


def test_what_cannot_begin_says_so():
    cell = GRUCell()
    with pytest.raises(InputError, match="at least one segment"):
        replay_backward(cell, [], cell.init_state())
    with pytest.raises(InputError, match="at least one segment"):
        checkpointed_loss(cell, [], cell.init_state())
    with torch.inference_mode():
        state = map_state(torch.clone, cell.init_state())
        with pytest.raises(TrainingError, match="inference_mode"):
            replay_backward(cell, segments(2), state)
    with pytest.raises(StateError, match="inference_mode"):
        replay_backward(cell, segments(2), state)
    with pytest.raises(StateError, match="the cotangent has 2 leaves and the state 1"):
        replay_backward(cell, segments(2), cell.init_state(), cotangent=(None, None))

    class Table(GRUCell):
        def loss(self, x, state):
            loss, state = super().loss(x, state)
            return loss.expand(3), state

    with pytest.raises(InputError, match=r"one number, the sum over the segment, got a tensor of shape \[3\]"):
        replay_backward(Table(), segments(2), cell.init_state())

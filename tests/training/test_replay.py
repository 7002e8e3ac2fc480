"""Memory replay gives the gradients of full back-propagation through time, under every condition that could break it."""

# ruff: noqa: NPY002  (NumPy's global generator is one of those a replay must put back)
import subprocess
import sys
import textwrap
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cells import B, D, GRUCell, L, segments
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.contract import empty
from memseq.layers.slots import SlotsConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.models.stack import StackConfig
from memseq.state import detach, map_state, state_bytes, tensors
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.live_bytes import LiveBytes
from memseq.training.replay import checkpointed_loss, replay_backward
from memseq.training.schedules import KeepAll, Offload, Revolve, Schedule, Sqrt

N = 5  # slots
SCHEDULES = [KeepAll(), Sqrt(), Revolve(slots=1), Revolve(slots=3), Offload(), Offload(inner=Sqrt())]


class Slots(NamedTuple):
    slots: Tensor
    cache: Tensor  # what the last segment looked like, without a gradient
    buffer: Tensor  # never filled at a border: an expanded zero
    count: Tensor  # integers, on the host
    seen: Tensor  # booleans


class SlotsCell(nn.Module):
    """Slots that attend to the segment, with every kind of randomness a cell may use and every kind of leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(N, D, dtype=torch.float64))
        self.key, self.head = nn.Linear(D, D, dtype=torch.float64), nn.Linear(D, D, dtype=torch.float64)

    def init_state(self) -> Slots:
        slots = self.start.expand(B, N, D)
        zeros = torch.zeros(B, L, D, dtype=torch.float64)
        return Slots(slots, zeros, empty(zeros, B, 7, D), torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.bool))

    def read(self, x: Tensor, state: Slots) -> tuple[Tensor, Slots]:
        x = x + 0.1 * state.cache + np.random.rand() + 0.01 * state.count[:, None, None]
        x = F.dropout(x, 0.3)
        slots = F.dropout(F.scaled_dot_product_attention(state.slots, self.key(x), x), 0.1) + 0.5 * state.slots
        y = F.scaled_dot_product_attention(x, slots, slots)
        return y, Slots(slots, x.detach().clone(), empty(x, B, 7, D), state.count + x.shape[1], ~state.seen)

    def loss(self, x: Tensor, state: Slots) -> tuple[Tensor, Slots]:
        y, state = self.read(x, state)
        return self.head(y).square().sum(), state

    def advance(self, x: Tensor, state: Slots) -> Slots:
        return self.read(x, state)[1]


CELLS = [GRUCell, SlotsCell]


def seed(number: int = 7) -> None:
    torch.manual_seed(number), np.random.seed(number)


def draws() -> tuple[float, float]:
    return torch.rand(()).item(), np.random.rand()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    return found


def bptt(cell, xs, state, scale=1.0, cotangent=None):
    """The definition: one graph through every segment."""
    total = 0.0
    for x in xs:
        loss, state = cell.loss(x, state)
        total = total + loss
    later = (
        0.0 if cotangent is None else sum((s * g).sum() for s, g in zip(tensors(state), tensors(cotangent), strict=True) if g is not None)
    )
    ((total + later) * scale).backward()
    return total.detach(), detach(state)


def check_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert all(g is not None for g in theirs.values())
    assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("make", CELLS)
def test_replay_equals_full_bptt(make, schedule, n):
    cell, xs = make(), segments(n)
    seed()
    total, end = bptt(cell, xs, cell.init_state())
    theirs, after = gradients(cell), draws()
    seed()
    replayed = replay_backward(cell, xs, cell.init_state(), schedule=schedule, verify=True)
    assert draws() == after  # the world goes on as after one plain reading
    check_same(gradients(cell), theirs)
    assert_close(replayed.loss, total, rtol=1e-12, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(tensors(replayed.state), tensors(end), strict=True))
    assert not any(t.requires_grad for t in tensors(replayed.state))


@pytest.mark.parametrize("make", CELLS)
def test_a_chain_of_checkpoints_equals_full_bptt(make):
    cell, xs = make(), segments(5)
    seed()
    total, end = bptt(cell, xs, cell.init_state())
    theirs, after = gradients(cell), draws()
    seed()
    loss, state = checkpointed_loss(cell, xs, cell.init_state())
    assert draws() == after
    seed(1)
    elsewhere = draws()
    seed(1)
    loss.backward()
    assert draws() == elsewhere  # the recomputation in backward leaves no trace either
    check_same(gradients(cell), theirs)
    assert_close(loss.detach(), total)
    assert all(torch.equal(a, b) for a, b in zip(tensors(detach(state)), tensors(end), strict=True))


def test_where_a_segment_uses_a_weight_once_the_gradients_are_equal_bit_for_bit():
    """Replay adds the segments' gradients in the order in which autograd does."""
    cell, xs = GRUCell(torch.float32), [x[:, :2] for x in segments(6, torch.float32)]
    cell.read = lambda x, state: (x + state[0][:, None], (cell.cell(x.mean(1), state[0]),))
    bptt(cell, xs, cell.init_state())
    theirs = gradients(cell)
    replay_backward(cell, xs, cell.init_state())
    ours = gradients(cell)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pythons_own_generator_is_put_back_too():
    """In a Python of its own: the checks of shapes in this one draw from `random` themselves."""
    script = """
        import random, torch
        from memseq.training.replay import checkpointed_loss, replay_backward
        from memseq.training.schedules import Revolve

        class Cell:
            weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
            def advance(self, x, state):
                return ((state[0] * self.weight * random.random() + x).tanh(),)
            def loss(self, x, state):
                state = self.advance(x, state)
                return state[0].square().sum(), state

        def read(reader):
            random.seed(0)
            reader(Cell(), [0.1, 0.2, 0.3, 0.4], (torch.ones(3, dtype=torch.float64),))
            grad, Cell.weight.grad = Cell.weight.grad, None
            return grad, random.random()

        def bptt(cell, xs, state):
            total = 0.0
            for x in xs:
                loss, state = cell.loss(x, state)
                total = total + loss
            total.backward()

        def chain(cell, xs, state):
            checkpointed_loss(cell, xs, state)[0].backward()

        expected, after = read(bptt)
        for reader in (replay_backward, lambda *window: replay_backward(*window, schedule=Revolve(slots=1)), chain):
            grad, then = read(reader)
            torch.testing.assert_close(grad, expected, rtol=1e-12, atol=0)
            assert then == after, (then, after)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=240)


def test_gradients_are_added_to_those_that_are_there():
    cell, xs = GRUCell(), segments(3)
    bptt(cell, xs, cell.init_state())
    once = gradients(cell)
    for _ in range(2):
        replay_backward(cell, xs, cell.init_state())
    check_same(gradients(cell), {name: 2 * g for name, g in once.items()})


def test_the_input_and_a_given_state_get_their_gradients_and_cotangents_enter():
    cell = GRUCell()
    cotangent = (torch.randn(B, D, dtype=torch.float64),)

    def run(reader):
        seed()
        xs = [x.requires_grad_() for x in segments(4)]
        state = (torch.randn(B, D, dtype=torch.float64, requires_grad=True),)
        reader(cell, xs, state, scale=3.0, cotangent=cotangent)
        return [x.grad for x in xs], state[0].grad, [g for name, g in gradients(cell).items() if name != "start"]

    assert_close(run(replay_backward), run(bptt), rtol=1e-9, atol=1e-12)


def test_windows_carry_the_state_and_cut_the_gradient():
    """Two windows of two = one reading of four whose state is detached in the middle, with a step of the optimiser between."""
    xs = segments(4)

    def run(reader):
        seed(3)
        cell = GRUCell()
        optimiser = torch.optim.SGD(cell.parameters(), lr=1e-3)
        state = cell.init_state()
        for window in (xs[:2], xs[2:]):
            loss, state = reader(cell, window, state)
            optimiser.step()
            optimiser.zero_grad()
        return list(cell.parameters()), loss, state

    assert_close(run(replay_backward), run(bptt), rtol=1e-12, atol=1e-14)


def test_any_sequence_that_can_be_read_again_will_do():
    class Computed:
        def __len__(self) -> int:
            return 5

        def __getitem__(self, t: int) -> Tensor:
            return torch.randn(B, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(t))

    cell, xs = GRUCell(), Computed()
    bptt(cell, [xs[t] for t in range(5)], cell.init_state())
    theirs = gradients(cell)
    replay_backward(cell, xs, cell.init_state())
    check_same(gradients(cell), theirs)


def test_the_first_pass_advances_and_never_asks_for_a_loss():
    calls: list[str] = []

    class Counted(GRUCell):
        def loss(self, x, state):
            calls.append("loss")
            assert torch.is_grad_enabled()
            return super().loss(x, state)

        def advance(self, x, state):
            calls.append("advance")
            assert not torch.is_grad_enabled()
            return super().advance(x, state)

    cell = Counted()
    replay_backward(cell, segments(6), cell.init_state())
    assert calls == ["advance"] * 5 + ["loss"] * 6


def test_a_stream_cell_resets_rows_inside_the_graph():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.embedding = GRUCell(), nn.Embedding(11, D, dtype=torch.float64)

        def init_state(self, batch_size):
            return (self.inner.start.tanh().expand(batch_size, D),)

        def loss(self, tokens, targets, state):
            hs, state = self.inner.read(self.embedding(tokens), state)
            return F.cross_entropy(self.inner.head(hs).flatten(0, 1), targets.flatten() % D, reduction="sum"), targets.numel(), state

        def advance(self, tokens, state):
            return self.inner.read(self.embedding(tokens), state)[1]

    cell = StreamCell(Model())
    resets = [[True] * B, [False] * B, [True, False, False], [False] * B, [False, True, True]]
    window = [Segment(torch.randint(11, (B, L)), torch.randint(11, (B, L)), torch.tensor(r)) for r in resets]
    stale = (torch.full((B, D), 1e6, dtype=torch.float64),)
    bptt(cell, window, stale)
    theirs = gradients(cell)
    replay_backward(cell, window, stale, verify=True)
    check_same(gradients(cell), theirs)
    assert theirs["model.inner.start"].abs().sum() > 0


def language_models() -> dict[str, Any]:
    window = SlidingWindowConfig(d_model=8, n_heads=2, window=3)
    slots = SlotsConfig(d_model=8, segment_length=L, n_slots=3, n_heads=2)
    memformer = {"vocab_size": 11, "d_model": 8, "slots": slots, "dropout": 0.1}
    return {
        "memformer": MemformerLMConfig(layers=2 * (SegmentAttentionConfig(d_model=8, n_heads=2, segment_length=L),), **memformer),
        "memformer_per_layer": MemformerLMConfig(layers=(window, window), memory="per_layer", **memformer),
        "gru_and_window": StackConfig(vocab_size=11, d_model=8, layers=((window, GRUConfig(d_model=8)), window), dropout=0.1),
    }


@pytest.mark.parametrize("length", [L, L - 1], ids=["at_borders", "inside_segments"])
@pytest.mark.parametrize("config", language_models().values(), ids=language_models())
def test_language_models_on_lanes_with_dropout(config, length):
    """Whole models, resets in the middle of the window, windows cut at and between the borders of what recurs."""
    model = config.build().double()
    for read in getattr(model, "reads", []):
        nn.init.normal_(read.out.weight, std=0.3)  # it starts at zero, which would hide the memory's gradient
    cell = StreamCell(model)
    resets = [[True] * B, [False] * B, [True, False, False], [False] * B, [False, True, True]]
    window = [Segment(*torch.randint(11, (2, B, length)), torch.tensor(r)) for r in resets]
    seed()
    total, end = bptt(cell, window, model.init_state(B))
    theirs, after = gradients(cell), draws()
    for schedule in SCHEDULES:
        seed()
        replayed = replay_backward(cell, window, model.init_state(B), schedule=schedule, verify=True)
        assert draws() == after
        assert_close(gradients(cell), theirs, rtol=1e-9, atol=1e-12)
        assert_close(replayed.loss, total, rtol=1e-12, atol=0)
        assert_close(replayed.state, end, rtol=0, atol=0)
    seed()
    checkpointed_loss(cell, window, model.init_state(B))[0].backward()
    assert_close(gradients(cell), theirs, rtol=1e-9, atol=1e-12)


def test_memory_grows_by_one_state_a_segment_or_by_less():
    """Peak bytes of all tensors alive: activations, kept states and gradients."""
    cell = GRUCell()
    state = detach(map_state(torch.clone, cell.init_state()))
    x, one = torch.randn(B, L, D, dtype=torch.float64), state_bytes(state)

    def peak(n: int, schedule: Schedule) -> int:
        cell.zero_grad()
        with LiveBytes() as held:
            replay_backward(cell, [x] * n, state, schedule=schedule)
        return held.peak

    start = peak(4, KeepAll())
    for n in (16, 256):
        assert (n - 4) * one <= peak(n, KeepAll()) - start <= 1.1 * (n - 4) * one
    assert peak(64, Sqrt()) - start <= 2 * 64**0.5 * one + 32 * 64  # the losses, a number a segment, are held too
    assert peak(64, Revolve(slots=4)) - start <= 2 * one + 32 * 64
    with LiveBytes() as full:
        bptt(cell, [x] * 16, state)
    assert full.peak > 4 * peak(16, KeepAll())


def test_without_a_graph_around_it_and_without_a_loss_to_score():
    """A window may be replayed under no_grad, and a segment in which nothing is scored still passes gradients back."""

    class LastOnly(GRUCell):
        def loss(self, x, state):
            loss, state = super().loss(x, state)
            return (loss if (x[0, 0, 0] > 0) else torch.zeros_like(loss.detach())), state

    cell, xs = LastOnly(), segments(4)
    for x, sign in zip(xs, (-1, -1, -1, 1), strict=True):
        x[0, 0, 0] = sign
    bptt(cell, xs, cell.init_state())
    theirs = gradients(cell)
    state = cell.init_state()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        replay_backward(cell, xs, state)
    check_same(gradients(cell), theirs)

"""Stable Hadamard memory against its equations, and the laws of its random rows."""

import pytest
import torch
from reading import read
from torch.testing import assert_close

from memseq.errors import ConfigError, StateError
from memseq.layers.calibration import drawn_rows
from memseq.memories.stable_hadamard import CyclingRows, FixedRow, NoCalibration, NoRow, RandomRows, StableHadamardConfig
from memseq.models.presets import preset
from memseq.ops.hadamard import scan_chunkwise
from memseq.state import choose, fork, select, stack, state_bytes
from memseq.training.replay import replay_backward

F64 = torch.float64
D, M = 8, 5
KINDS = [RandomRows(n_rows=16), CyclingRows(n_rows=3), FixedRow(), NoRow(), NoCalibration()]


def build(**options):
    return StableHadamardConfig(d_model=D, memory_size=M, **options).build().double()


def by_the_equations(memory, x, seed=0):
    """The paper's order: values along rows, keys along columns; one stream, one token after the other."""
    W_k, W_q, W_v, w_eta = memory.inputs.weight.split((M, M, M, 1))
    calibration, matrix, y = memory.calibration, torch.zeros(M, M, dtype=F64), []
    for t, token in enumerate(memory.norm(x)):
        k, q = ((u := (W @ token).relu()) / (1e-5 + u.sum()) for W in (W_k, W_q))
        v, eta = W_v @ token, (w_eta @ token).sigmoid()
        C = torch.ones(M, M, dtype=F64)
        if hasattr(calibration, "key"):
            rows = getattr(calibration, "rows", torch.ones(1, M, dtype=F64))
            row = drawn_rows(torch.tensor([seed]), torch.tensor([[t]]), len(rows)) if hasattr(calibration, "rows") else 0
            row = int(row) if isinstance(memory.config.calibration, RandomRows) else t % len(rows)
            C = 1 + torch.outer(rows[row], calibration.key.weight @ token).tanh()
        matrix = matrix * C + eta * torch.outer(v, k)
        y.append(memory.out(matrix @ q))
    return torch.stack(y), matrix


@pytest.mark.parametrize("cuts", [[40], [1] * 40, [17, 1, 22]], ids=lambda c: str(c[:3]))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_it_is_its_equations(kind, cuts):
    memory = build(calibration=kind).eval()
    x = torch.randn(2, 40, D, dtype=F64)
    y, state = read(memory, x, cuts)
    for b in range(2):
        wanted, matrix = by_the_equations(memory, x[b])
        assert_close(y[b], wanted, rtol=1e-10, atol=1e-11)
        assert_close(state.matrix[b].T, matrix, rtol=1e-10, atol=1e-11)


def test_the_parallel_scan_of_its_calibrations_is_its_matrix():
    memory = build(limit=None).eval()
    x = torch.randn(2, 33, D, dtype=F64)
    state = memory.init_state(2)
    h = memory.norm(x)
    c, theta = memory.calibration(h, state.seed, torch.arange(33).expand(2, 33))
    k, _, v, eta = memory.inputs(h).split((M, M, M, 1), dim=-1)
    k = k.relu() / (1e-5 + k.relu().sum(-1, keepdim=True))
    C, U = 1 + (c[..., None] * theta[..., None, :]).tanh(), k[..., None] * (eta.sigmoid() * v)[..., None, :]
    assert_close(memory(x, state)[1].matrix, scan_chunkwise(C, U, state.matrix)[:, -1], rtol=1e-11, atol=1e-11)


def test_without_calibration_it_is_linear_attention():
    memory = build(calibration=NoCalibration(), limit=None).eval()
    x = torch.randn(1, 30, D, dtype=F64)
    k, q, v, eta = memory.inputs(memory.norm(x)).split((M, M, M, 1), dim=-1)
    k, q = (u.relu() / (1e-5 + u.relu().sum(-1, keepdim=True)) for u in (k, q))
    wanted = memory.out((q @ k.mT).tril() @ (eta.sigmoid() * v))
    assert_close(memory(x, memory.init_state(1))[0], wanted, rtol=1e-11, atol=1e-11)


def test_rows_of_a_batch_draw_rows_of_their_own_seed():
    memory = build().eval()
    x = torch.randn(1, 30, D, dtype=F64).expand(3, 30, D)
    y, _ = memory(x, memory.reseed(memory.init_state(3), [4, 5, 4]))
    assert_close(y[0], y[2], rtol=1e-12, atol=1e-12)
    assert float((y[0] - y[1]).detach().abs().max()) > 1e-3
    assert_close(y[1], by_the_equations(memory, x[1], seed=5)[0], rtol=1e-10, atol=1e-11)


def test_a_fork_has_the_same_future():
    memory = build().eval()
    x, more = torch.randn(2, 9, D, dtype=F64), torch.randn(2, 9, D, dtype=F64)
    state = memory.advance(x, memory.reseed(memory.init_state(2), [8, 9]))
    y, _ = memory(more, state)
    copies, _ = memory(more.repeat_interleave(3, 0), fork(state, 3))
    assert_close(copies, y.repeat_interleave(3, 0), rtol=1e-12, atol=1e-12)


def test_a_stream_that_is_reset_is_a_new_stream():
    memory = build().eval()
    x = torch.randn(2, 20, D, dtype=F64)
    state = memory.advance(x[:, :9], memory.init_state(2))
    y, _ = memory(x[:, 9:], choose(torch.tensor([False, True]), memory.init_state(2), state))
    assert_close(y[1:], memory(x[1:, 9:], memory.init_state(1))[0], rtol=1e-10, atol=1e-12)
    assert_close(y[:1], memory(x[:1], memory.init_state(1))[0][:, 9:], rtol=1e-10, atol=1e-12)


def test_in_training_every_stream_starts_with_a_seed_of_its_own_and_keeps_it():
    memory = build().train()
    x = torch.randn(4, 6, D, dtype=F64)
    first = memory.advance(x, memory.init_state(4))
    assert len(set(first.seed.tolist())) == 4
    assert torch.equal(memory.advance(x, first).seed, first.seed)
    again = memory.advance(x, memory.init_state(4))
    assert not torch.equal(again.seed, first.seed)
    mixed = memory.advance(x[:2], stack([memory.init_state(1), select(first, [3])]))
    assert int(mixed.seed[1]) == int(first.seed[3])
    assert memory.eval().advance(x, memory.init_state(4)).seed.tolist() == [0] * 4


def test_what_advances_draws_what_is_read():
    memory = build().train()
    x = torch.randn(3, 11, D, dtype=F64)
    ends = []
    for read_by in (lambda s: memory(x, s)[1], lambda s: memory.advance(x, s)):
        torch.manual_seed(5)
        ends.append((read_by(memory.init_state(3)), torch.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert torch.equal(ends[0][1], ends[1][1])


class Cell(torch.nn.Module):
    """The sum of the squares of what is read."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory

    def loss(self, x, state):
        y, state = self.memory(x, state)
        return y.square().sum(), state

    def advance(self, x, state):
        return self.memory.advance(x, state)


@pytest.mark.parametrize("kind", [RandomRows(n_rows=16), NoRow()], ids=lambda kind: type(kind).__name__)
def test_replay_with_random_rows_is_bptt(kind):
    memory = build(calibration=kind).train()
    x = torch.randn(2, 30, D, dtype=F64)
    torch.manual_seed(3)
    replay_backward(Cell(memory), x.split(6, dim=1), memory.init_state(2))
    found = [p.grad.clone() for p in memory.parameters()]
    torch.manual_seed(3)
    y, _ = read(memory, x, 6)
    for f, w in zip(found, torch.autograd.grad(y.square().sum(), list(memory.parameters())), strict=True):
        assert_close(f, w, rtol=1e-9, atol=1e-12)


def test_a_matrix_at_its_limit_stays_there():
    """One row that is the same for every token doubles elements on a constant input: the limit is what keeps them finite."""
    torch.manual_seed(0)
    memory = StableHadamardConfig(d_model=D, memory_size=M, calibration=FixedRow()).build().eval()
    free = StableHadamardConfig(d_model=D, memory_size=M, calibration=FixedRow(), limit=None).build().eval()
    with torch.no_grad():
        memory.calibration.rows.fill_(2.0)
        memory.calibration.key.weight.copy_(memory.inputs.weight[:M])  # what is written is also strengthened
        free.load_state_dict(memory.state_dict())
        x = torch.randn(1, 1, D).expand(1, 2000, D)
        y, state = memory(x, memory.init_state(1))
        assert bool(y.isfinite().all())
        assert float(state.matrix.abs().max()) == 100.0
        assert not bool(free(x, free.init_state(1))[1].matrix.isfinite().all())


def test_keys_that_are_all_negative_write_nothing_with_relu_and_something_with_softplus():
    for positive, writes in (("relu", False), ("softplus", True)):
        memory = build(positive=positive).eval()
        with torch.no_grad():
            memory.norm.weight.zero_()
            memory.norm.bias.copy_(torch.ones(D))
            memory.inputs.weight[:M].fill_(-1.0)
        state = memory(torch.randn(1, 5, D, dtype=F64), memory.init_state(1))[1]
        assert bool(state.matrix.abs().sum() > 0) is writes


def test_the_state_costs_what_its_docstring_says():
    memory = StableHadamardConfig(d_model=32, memory_size=24).build()
    with torch.no_grad():
        for T in (1, 10, 300):
            assert state_bytes(memory(torch.randn(3, T, 32), memory.init_state(3))[1]) == 3 * (4 * 24**2 + 8 + 8)


def test_a_size_has_a_matrix_of_a_quarter_of_its_width():
    assert preset("stable_hadamard", "tiny").layers[0].memory_size == 32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_size": 0}, "memory_size must be at least 1, got 0"),
        ({"limit": 0.0}, "limit must be above zero, or None for no limit"),
    ],
)
def test_bad_configs_are_refused_in_words(options, said):
    with pytest.raises(ConfigError, match=said):
        StableHadamardConfig(d_model=D, **options)


@pytest.mark.parametrize("seeds", [[1], [-1, 0], [2**31, 0]])
def test_seeds_that_fit_no_batch_are_refused(seeds):
    memory = build()
    with pytest.raises(StateError, match="reseed takes 2 whole numbers of 0 to 2147483647"):
        memory.reseed(memory.init_state(2), seeds)

"""One step a segment: pieces against the token recurrence, in outputs, states and all gradients, and what it reduces to."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.contract import empty
from memseq.ops.fast_network import mlp
from memseq.ops.titans import FastState, Gates, titans_recurrent
from memseq.ops.titans_segments import GatheredState, SegmentGates, segments_chunkwise, segments_recurrent

F64 = torch.float64
NETWORKS = {"matrix": mlp((4, 4)), "two layers": mlp((4, 6, 4)), "residual, normed": mlp((4, 8, 4), norm=True, residual=True)}


def stream(network, T=19, *, gates="forget momentum", aged=True):
    """Inputs of T tokens; aged: rows at different places of a segment that was left open."""
    torch.manual_seed(T)
    B, H = 2, 2
    q, k, v = (F.normalize(torch.randn(B, H, T, 4, dtype=F64), dim=-1).requires_grad_() for _ in range(3))
    W, S, N = (
        tuple((scale * torch.randn(B, H, *layer.shape, dtype=F64)).requires_grad_() for layer in network.fast) for scale in (0.5, 0.1, 0.1)
    )
    logits = {name: torch.randn(B, H, T, dtype=F64).requires_grad_() for name in gates.split()}
    given = SegmentGates(logits.get("forget"), logits.get("momentum"), (0.1 * torch.rand(B, H, T, dtype=F64)).requires_grad_())
    sums = torch.randn(B, H, len(logits), dtype=F64).requires_grad_()
    if not aged:
        N, sums = tuple(empty(z, *z.shape) for z in N), torch.zeros_like(sums)
    position = torch.tensor([0, 3]) if aged else torch.zeros(B, dtype=torch.int64)
    if aged:  # a row at a border has gathered nothing
        open_rows = (position > 0).reshape(-1, 1, 1)
        N, sums = tuple(z * open_rows[..., None] if z.ndim == 4 else z * open_rows for z in N), sums * open_rows
    return q, k, v, given, GatheredState(W, S if "momentum" in logits else (), N, sums, position)


def measured(y, state, inputs, home=()):
    q, k, v, gates, start = inputs
    values = [y, *state.weights, *state.momentum, *state.gathered, state.gates]
    generator = torch.Generator().manual_seed(7)
    total = sum((z * torch.randn(z.shape, generator=generator, dtype=F64)).sum() for z in values)
    sources = [z for z in (q, k, v, *gates, *start.weights, *start.momentum, *start.gathered, start.gates, *home) if z is not None]
    sources = [z for z in sources if z.requires_grad]
    return [*values, *torch.autograd.grad(total, sources, retain_graph=True, allow_unused=True, materialize_grads=True)]


def same(found, wanted):
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-10 * (1 + float(w.detach().norm())))


def cut(inputs, sizes, network, **options):
    q, k, v, gates, state = inputs
    ys, at = [], 0
    for n in sizes:
        here = slice(at, at + n)
        now = SegmentGates(*(None if z is None else z[:, :, here] for z in gates))
        y, state = segments_chunkwise(network, q[:, :, here], k[:, :, here], v[:, :, here], now, state, **options)
        ys.append(y)
        at += n
    return torch.cat(ys, dim=2), state


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gates", ["forget momentum", "momentum", "forget", ""])
def test_pieces_are_the_token_recurrence(name, gates):
    network, inputs = NETWORKS[name], stream(NETWORKS[name], gates=gates)
    options = {"segment_length": 5, "limit": 0.7}
    y, state = segments_recurrent(network, *inputs, **options)
    wanted = measured(y, state, inputs)
    for sizes in ([19], [1] * 19, [7, 1, 11], [2, 17]):
        found, end = cut(inputs, sizes, network, **options)
        same(measured(found, end, inputs), wanted)
        assert torch.equal(end.position, state.position)
    quiet, end = segments_chunkwise(network, None, *inputs[1:], **options)
    assert quiet.shape == (2, 2, 0, 4)
    same(end.weights, state.weights)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("gates", ["forget momentum", "momentum"])
def test_pieces_are_the_token_recurrence_that_forgets_towards_other_weights(name, gates):
    network, inputs = NETWORKS[name], stream(NETWORKS[name], gates=gates)
    home = tuple(torch.randn(2, *layer.shape, dtype=F64, requires_grad=True) for layer in network.fast)
    options = {"segment_length": 5, "limit": 0.7, "home": home}
    wanted = measured(*segments_recurrent(network, *inputs, **options), inputs, home)
    for sizes in ([19], [1] * 19, [7, 1, 11], [2, 17]):
        same(measured(*cut(inputs, sizes, network, **options), inputs, home), wanted)


@pytest.mark.parametrize("T", [1, 16, 21, 64])
def test_lengths_that_are_and_are_not_multiples_of_the_segment(T):
    network, inputs = NETWORKS["two layers"], stream(NETWORKS["two layers"], T, aged=False)
    wanted = measured(*segments_recurrent(network, *inputs, segment_length=16), inputs)
    same(measured(*segments_chunkwise(network, *inputs, segment_length=16), inputs), wanted)


def test_segments_of_one_token_are_titans():
    network = NETWORKS["two layers"]
    q, k, v, gates, state = stream(network, aged=False)
    y, end = segments_chunkwise(network, q, k, v, gates, state, segment_length=1)
    by_token = Gates(F.logsigmoid(-gates.forget), F.logsigmoid(gates.momentum), gates.step)
    fast = FastState(state.weights, state.momentum, state.weights, state.position)
    expected, wanted = titans_recurrent(network, q, k, v, by_token, fast, segment_length=1)
    same([y, *end.weights, *end.momentum], [expected, *wanted.weights, *wanted.momentum])


def test_without_gates_the_weights_of_a_matrix_are_a_step_on_the_sum_of_its_segment():
    network = NETWORKS["matrix"]
    q, k, v, gates, state = stream(network, 8, gates="", aged=False)
    y, end = segments_chunkwise(network, q, k, v, gates, state, segment_length=8)
    (W,) = state.weights
    moved = W - (k * gates.step[..., None]).mT @ (k @ W - v)
    same([y[:, :, :-1], y[:, :, -1:], end.weights[0]], [q[:, :, :-1] @ W, q[:, :, -1:] @ moved, moved])
    assert not end.gathered[0].any()

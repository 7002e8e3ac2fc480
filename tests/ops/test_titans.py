"""The dual form, the scan form and the triangular solve against the token recurrence, in outputs, states and all gradients."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.ops.delta_rule import delta_recurrent
from memseq.ops.fast_network import mlp
from memseq.ops.titans import FastState, Gates, titans_chunkwise, titans_online_linear, titans_recurrent, titans_scan

F64 = torch.float64
NETWORKS = {
    "matrix": mlp((4, 4)),
    "two layers": mlp((4, 6, 4)),
    "three layers, biases": mlp((4, 5, 6, 4), activation="silu", bias=True),
    "residual, normed": mlp((4, 8, 4), norm=True, residual=True),
}


def stream(network, T=19, *, momentum=True, rows=2, aged=True):
    """Inputs of T tokens after a segment that was left open: W, S and the anchor all differ, and so do the rows' positions."""
    B, H = rows, 2
    fresh = lambda *shape, scale=1.0: (torch.randn(*shape, dtype=F64) * scale).requires_grad_()  # noqa: E731
    W, S, A = (tuple(fresh(B, H, *layer.shape, scale=scale) for layer in network.fast) for scale in (0.5, 0.1, 0.5))
    q, k, v = (fresh(B, H, T, 4) for _ in range(3))
    gates = Gates(
        F.logsigmoid(torch.randn(B, H, T, dtype=F64) + 2).detach().requires_grad_(),
        F.logsigmoid(torch.randn(B, H, T, dtype=F64)).detach().requires_grad_() if momentum else None,
        (torch.rand(B, H, T, dtype=F64) * 0.1).requires_grad_(),
    )
    position = torch.tensor([0, 3])[:rows] if aged else torch.zeros(rows, dtype=torch.int64)
    return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, gates, FastState(W, S if momentum else (), A, position)


def measured(y, state, inputs, home=()):
    """Outputs, state, and the gradients of a weighted sum of both to every input, gates, first weights, momentum and anchor too."""
    q, k, v, gates, start = inputs
    values = [y, *state.weights, *state.momentum, *state.anchor]
    generator = torch.Generator().manual_seed(7)
    total = sum((z * torch.randn(z.shape, generator=generator, dtype=F64)).sum() for z in values)
    sources = [q, k, v, *(z for z in gates if z is not None), *start.weights, *start.momentum, *start.anchor, *home]
    return [*values, *torch.autograd.grad(total, sources, retain_graph=True, allow_unused=True, materialize_grads=True)]


def same(found, wanted):
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-10 * (1 + float(w.detach().abs().max())))


def read(network, inputs, sizes, **options):
    """The stream cut into pieces, each by the dual form, the state carried."""
    q, k, v, gates, state = inputs
    ys, at = [], 0
    for n in sizes:
        here = slice(at, at + n)
        now = Gates(*(None if z is None else z[:, :, here] for z in gates))
        y, state = titans_chunkwise(network, q[:, :, here], k[:, :, here], v[:, :, here], now, state, **options)
        ys.append(y)
        at += n
    return torch.cat(ys, dim=2), state


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", ["as published", "exclusive", "limited", "no momentum"])
def test_all_forms_are_the_token_recurrence(name, variant):
    network, inputs = NETWORKS[name], stream(NETWORKS[name], momentum=variant != "no momentum")
    options = {"segment_length": 8, "exclusive": variant == "exclusive", "limit": 0.7 if variant == "limited" else None}
    y, state = titans_recurrent(network, *inputs, **options)
    wanted = measured(y, state, inputs)
    for chunk_size in (1, 5, 64):
        found, end = titans_chunkwise(network, *inputs, chunk_size=chunk_size, **options)
        same(measured(found, end, inputs), wanted)
        assert torch.equal(end.position, state.position)
    found, end = titans_scan(network, *inputs, chunk_size=5, **options)
    same(measured(found, end, inputs), wanted)
    for sizes in ([7, 1, 11], [18, 1]):
        same(measured(*read(network, inputs, sizes, **options), inputs), wanted)
    quiet, end = titans_chunkwise(network, None, *inputs[1:], **options)
    assert quiet.shape == (2, 2, 0, 4)
    same(end.weights, state.weights)


def rested(network):
    """Weights that forgetting draws to, those of every head."""
    return tuple(torch.randn(2, *layer.shape, dtype=F64, requires_grad=True) for layer in network.fast)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("variant", ["inclusive", "exclusive", "no momentum"])
def test_all_forms_are_the_token_recurrence_that_forgets_towards_other_weights(name, variant):
    network, inputs = NETWORKS[name], stream(NETWORKS[name], momentum=variant != "no momentum")
    home = rested(network)
    options = {"segment_length": 8, "exclusive": variant == "exclusive", "limit": 0.7, "home": home}
    wanted = measured(*titans_recurrent(network, *inputs, **options), inputs, home)
    for chunk_size in (1, 5, 64):
        same(measured(*titans_chunkwise(network, *inputs, chunk_size=chunk_size, **options), inputs, home), wanted)
    same(measured(*titans_scan(network, *inputs, chunk_size=5, **options), inputs, home), wanted)
    same(measured(*read(network, inputs, [7, 1, 11], **options), inputs, home), wanted)


def test_what_is_forgotten_at_once_leaves_the_other_weights_and_what_is_never_forgotten_does_not_know_them():
    network = NETWORKS["two layers"]
    q, k, v, gates, state = stream(network)
    home = rested(network)
    nothing = tuple(torch.zeros_like(rest) for rest in home)
    published = titans_chunkwise(network, q, k, v, gates, state, segment_length=8)
    drawn_to_zero = titans_chunkwise(network, q, k, v, gates, state, segment_length=8, home=nothing)
    assert_close(drawn_to_zero[0], published[0], rtol=1e-12, atol=1e-12)
    kept = gates._replace(keep=torch.zeros_like(gates.keep))
    found, wanted = (titans_chunkwise(network, q, k, v, kept, state, segment_length=8, **to) for to in ({}, {"home": home}))
    assert_close(found[0], wanted[0], rtol=1e-12, atol=1e-12)
    gone = gates._replace(keep=torch.full_like(gates.keep, -60.0))
    _, end = titans_chunkwise(network, q, k, v, gone, state, segment_length=8, home=home)
    for W, rest, S in zip(end.weights, home, end.momentum, strict=True):
        assert_close(W, rest + S, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_matrix_that_forgets_towards_another_learns_what_that_one_leaves_over(exclusive):
    """W = W* + D: D is the published memory of the values v - k W*, and the stream reads q W* + q D; both at segments and online."""
    network, (q, k, v, gates, state) = NETWORKS["matrix"], stream(NETWORKS["matrix"], 23, aged=False)
    (rest,) = rested(network)
    state = state._replace(anchor=state.weights)
    apart = state._replace(weights=(state.weights[0] - rest,), anchor=(state.weights[0] - rest,))
    for form, options in (
        (titans_online_linear, {"chunk_size": 7}),
        (partial(titans_chunkwise, network), {"segment_length": 8}),
        (partial(titans_recurrent, network), {"segment_length": 1}),
    ):
        y, end = form(q, k, v, gates, state, exclusive=exclusive, home=(rest,), **options)
        D, left = form(q, k, v - k @ rest, gates, apart, exclusive=exclusive, **options)
        assert_close(y, q @ rest + D, rtol=1e-10, atol=1e-11)
        assert_close(end.weights[0], left.weights[0] + rest, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("T", [1, 16, 21])
def test_lengths_that_are_and_are_not_multiples_of_the_segment(T):
    network, inputs = NETWORKS["two layers"], stream(NETWORKS["two layers"], T, aged=False)
    wanted = measured(*titans_recurrent(network, *inputs, segment_length=16), inputs)
    for chunk_size in (1, 7, 16, 64, T):
        same(measured(*titans_chunkwise(network, *inputs, segment_length=16, chunk_size=chunk_size), inputs), wanted)


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("exclusive", [False, True])
def test_the_strict_online_rule_of_a_matrix_is_a_triangular_system(momentum, exclusive):
    network = NETWORKS["matrix"]
    q, k, v, gates, state = stream(network, 23, momentum=momentum, aged=False)
    state = state._replace(anchor=state.weights)
    inputs = (q, k, v, gates, state)
    wanted = measured(*titans_recurrent(network, *inputs, segment_length=1, exclusive=exclusive), inputs)
    for chunk_size in (1, 7, 16, 64):
        same(measured(*titans_online_linear(*inputs, chunk_size=chunk_size, exclusive=exclusive), inputs), wanted)


def test_the_segment_is_part_of_the_function():
    network, inputs = NETWORKS["matrix"], stream(NETWORKS["matrix"], aged=False)
    a, b = (titans_chunkwise(network, *inputs, segment_length=n)[0] for n in (4, 8))
    assert_close(a[:, :, :4], b[:, :, :4], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(a[:, :, 5:], b[:, :, 5:])


def test_without_momentum_a_matrix_is_gated_deltanet():
    """With 1 - alpha = a, theta = a b and values v / a: Titans takes the gradient before it forgets, Gated DeltaNet after."""
    q, k, v, gates, state = stream(NETWORKS["matrix"], 23, momentum=False, aged=False)
    log_a, b = gates.keep, gates.step
    step = gates._replace(step=b * log_a.exp())
    y, end = titans_online_linear(q, k, v / log_a.exp()[..., None], step, state)
    wanted, S = delta_recurrent(q, k, v, b, log_a, state.weights[0])
    assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    assert_close(end.weights[0], S, rtol=1e-10, atol=1e-12)


def test_untrained_the_online_rule_recalls_as_well_as_is_known():
    """Pairs of random unit keys and values, K = 32, step 1, one pass, 20 seeds: relative squared error of recall."""
    for n, known in ((16, 0.29), (32, 0.60), (64, 1.04)):
        k, v = (F.normalize(torch.randn(20, 4, n, 32, dtype=F64), dim=-1) for _ in range(2))
        one, zero = torch.ones(20, 4, n, dtype=F64), torch.zeros(20, 4, 32, 32, dtype=F64)
        state = FastState((zero,), (), (zero,), torch.zeros(20, dtype=torch.int64))
        _, end = titans_online_linear(None, k, v, Gates(0 * one, None, one), state)
        assert float((k @ end.weights[0] - v).square().sum(-1).mean()) == pytest.approx(known, abs=0.03)


def test_without_momentum_and_forgetting_orthonormal_keys_recall_exactly():
    k = torch.eye(4, dtype=F64)[None, None].repeat(1, 1, 2, 1)  # every key twice: the second value counts
    v = torch.randn(1, 1, 8, 4, dtype=F64)
    one = torch.ones(1, 1, 8, dtype=F64)
    state = FastState((torch.randn(1, 1, 4, 4, dtype=F64),), (), (torch.zeros(1, 1, 4, 4, dtype=F64),), torch.zeros(1, dtype=torch.int64))
    _, end = titans_online_linear(k, k, v, Gates(0 * one, None, one), state)
    assert_close(k[:, :, 4:] @ end.weights[0], v[:, :, 4:], rtol=1e-12, atol=1e-12)


def test_a_limited_gradient_keeps_a_stream_finite_that_diverges_without():
    network = NETWORKS["two layers"]
    q, k, v, _, state = stream(network, 2000, rows=1, aged=False)
    gates = Gates(torch.full((1, 2, 2000), -1e-3, dtype=F64), torch.full((1, 2, 2000), -0.1, dtype=F64), torch.ones(1, 2, 2000, dtype=F64))
    with torch.no_grad():
        free = titans_chunkwise(network, q, k, v, gates, state, segment_length=16)[1]
        held = titans_chunkwise(network, q, k, v, gates, state, segment_length=16, limit=1.0)[1]
    assert not all(W.isfinite().all() for W in free.weights)
    assert max(float(W.abs().max()) for W in held.weights) < 1e4  # |S| <= theta / (1 - eta), |W| <= |S| / alpha


def test_gates_and_state_must_agree_on_momentum():
    q, k, v, gates, state = stream(NETWORKS["matrix"])
    with pytest.raises(ConfigError, match="agree on momentum"):
        titans_chunkwise(NETWORKS["matrix"], q, k, v, gates._replace(momentum=None), state, segment_length=4)

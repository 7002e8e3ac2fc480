"""Miras: the chunkwise form is the definition for every choice, and known rules are some of the choices."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.ops.fast_network import mlp
from memseq.ops.linear_attention import decay_recurrent, delta_recurrent
from memseq.ops.miras import (
    Bounded,
    Elastic,
    Huber,
    Keep,
    NormQ,
    Power,
    Product,
    Simplex,
    Squared,
    miras_chunkwise,
    miras_recurrent,
)
from memseq.ops.titans import FastState, Gates, titans_chunkwise

B, H, T, K = 2, 2, 19, 5
BIASES = [Squared(), Power(p=3.0), Power(p=1.5), Huber(), Product()]
RETENTIONS = [Keep(), NormQ(q=4.0), Simplex(scale=2.0), Elastic(threshold=0.1), Bounded(bound=0.5)]
NETWORKS = {"matrix": mlp((K, K)), "perceptron": mlp((K, 7, K), norm=True, residual=True)}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def made(network, *, momentum=False, seed=0):
    """Queries, keys, values, gates, distances and a state, all in need of gradients."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    q, k, v = (draw(B, H, T, K) for _ in range(3))
    keep, eta = -0.1 * draw(B, H, T).abs(), -draw(B, H, T).abs() if momentum else None
    gates, delta = Gates(keep, eta, 0.1 * draw(B, H, T).abs()), 0.5 + draw(B, H, T).abs()
    weights = tuple(draw(B, H, *layer.shape) for layer in network.fast)
    carried = tuple(0.1 * draw(*W.shape) for W in weights) if momentum else ()
    inputs = [q, k, v, keep, gates.step, delta, *weights, *carried]
    for t in inputs:
        t.requires_grad_()
    return q, k, v, gates, delta, FastState(weights, carried, weights, torch.zeros(B, dtype=torch.int64)), inputs


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("bias", "retention"), list(product(BIASES, RETENTIONS)), ids=str)
def test_chunks_are_the_definition(network, bias, retention):
    """Outputs, state and gradients, with momentum and without, at an odd place of the segment, for chunks that do not divide it."""
    M = NETWORKS[network]
    momentum = isinstance(bias, Squared | Huber)
    q, k, v, gates, delta, state, inputs = made(M, momentum=momentum)
    options = {"bias": bias, "retention": retention, "segment_length": 6, "limit": None if isinstance(bias, Product) else 3.0}
    y, end = miras_recurrent(M, q, k, v, gates, delta, state, **options)
    expected = torch.autograd.grad(y.square().sum() + sum(W.sum() for W in end.weights), inputs, allow_unused=True)
    for chunk_size in (4, 64):
        found, after = miras_chunkwise(M, q, k, v, gates, delta, state, chunk_size=chunk_size, **options)
        assert_close(found, y, **TIGHT)
        assert_close(after, end, **TIGHT)
        grads = torch.autograd.grad(found.square().sum() + sum(W.sum() for W in after.weights), inputs, allow_unused=True)
        for a, b in zip(grads, expected, strict=True):
            assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("momentum", [False, True])
def test_a_squared_loss_and_kept_weights_are_titans(momentum):
    M = NETWORKS["perceptron"]
    q, k, v, gates, delta, state, _ = made(M, momentum=momentum)
    options = {"segment_length": 6, "limit": 2.0}
    expected, end = titans_chunkwise(M, q, k, v, gates, state, **options)
    for bias, retention in ((Squared(), Keep()), (Squared(), Elastic(threshold=0.0)), (Huber(), Keep())):
        y, after = miras_chunkwise(M, q, k, v, gates, 1e9 * delta, state, bias=bias, retention=retention, **options)
        assert_close(y, expected, **TIGHT)
        assert_close(after, end, **TIGHT)


def test_moneta_with_two_norms_is_titans_at_twice_the_step():
    M = NETWORKS["perceptron"]
    q, k, v, gates, delta, state, _ = made(M)
    y, _ = miras_chunkwise(M, q, k, v, gates, delta, state, bias=Power(p=2.0), retention=NormQ(q=2.0), segment_length=6)
    expected, _ = titans_chunkwise(M, q, k, v, gates._replace(step=2 * gates.step), state, segment_length=6)
    assert_close(y, expected, **TIGHT)


def test_matrices_that_step_at_every_token_are_known_rules():
    M = NETWORKS["matrix"]
    q, k, v, gates, delta, state, _ = made(M)
    (S,), a, theta = state.weights, gates.keep.exp(), gates.step
    y, _ = miras_chunkwise(M, q, k, v, gates, None, state, bias=Product(), retention=Keep(), segment_length=1)
    expected, _ = decay_recurrent(q, k, theta[..., None] * v, gates.keep, S)  # RetNet, Mamba-2, and linear attention where nothing decays
    assert_close(y, expected, **TIGHT)
    y, _ = miras_chunkwise(M, q, k, v, gates, None, state, bias=Squared(), retention=Keep(), segment_length=1)
    expected, _ = delta_recurrent(q, k, a[..., None] * v, theta / a, gates.keep, S)  # Gated DeltaNet, and DeltaNet
    assert_close(y, expected, **TIGHT)


def test_huber_bounds_a_step_and_a_small_distance_is_normed_descent():
    e = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    slope = Huber().slope(10 * e, torch.zeros_like(e), torch.full((2, 3, 4), 0.5, dtype=torch.float64))
    assert_close(slope.norm(dim=-1), torch.full((2, 3, 4), 0.5, dtype=torch.float64), **TIGHT)
    tiny = Huber().slope(e, torch.zeros_like(e), torch.full((2, 3, 4), 1e-6, dtype=torch.float64)) / 1e-6
    assert_close(tiny, e / e.norm(dim=-1, keepdim=True), rtol=1e-6, atol=1e-6)
    same = Huber().slope(0.01 * e, torch.zeros_like(e), torch.ones(2, 3, 4, dtype=torch.float64))
    assert_close(same, 0.01 * e, **TIGHT)


def test_memora_is_the_papers_recursion_of_logarithms():
    M = NETWORKS["matrix"]
    q, k, v, gates, delta, state, _ = made(M)
    c = 2.0
    y, end = miras_recurrent(M, q, k, v, gates, None, state, bias=Squared(), retention=Simplex(scale=c), segment_length=1)
    W, said = c * state.weights[0].softmax(-2), []
    for t in range(T):
        u = k[:, :, t, :, None] * ((k[:, :, t, None] @ W)[:, :, 0] - v[:, :, t])[:, :, None]
        keep, step = (z[:, :, t, None, None] for z in (gates.keep.exp(), gates.step))
        W = c * (keep * (W / c).log() - step * u).softmax(-2)
        said.append((q[:, :, t, None] @ W)[:, :, 0])
    assert_close(y, torch.stack(said, dim=2), **TIGHT)
    shares = Simplex(scale=c).primal(end.weights[0]).sum(-2)
    assert_close(shares, torch.full_like(shares, c), **TIGHT)


def test_retentions_hold_weights_where_they_say():
    A = 3 * torch.randn(2, 2, 6, 4, dtype=torch.float64)
    assert float(Bounded(bound=0.7).primal(A).abs().max()) < 0.7
    sparse = Elastic(threshold=1.0).primal(A)
    assert bool(((sparse == 0) == (A.abs() <= 1)).all())
    assert_close(NormQ(q=4.0).primal(A), A / (A.abs() ** 4).sum((-2, -1), keepdim=True) ** 0.5, **TIGHT)


def test_an_outlier_disturbs_a_huber_memory_less_than_half_as_much():
    """Sequential recall of unit keys, a tenth of the values twenty times too large; the step is the best one on clean data."""
    d, n, M = 32, 24, mlp((32, 32))
    errors = {"squared": [], "huber": []}
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        k = torch.nn.functional.normalize(torch.randn(1, 1, n, d, generator=g, dtype=torch.float64), dim=-1)
        v = torch.randn(1, 1, n, d, generator=g, dtype=torch.float64)
        bad = torch.rand(n, generator=g) < 0.1
        seen = torch.where(bad[None, None, :, None], 20 * v, v)
        ones = torch.ones(1, 1, n, dtype=torch.float64)
        zeros = (torch.zeros(1, 1, d, d, dtype=torch.float64),)
        state = FastState(zeros, (), zeros, torch.zeros(1, dtype=torch.int64))
        for name, bias in (("squared", Squared()), ("huber", Huber())):
            typical = 1.5 * d**0.5 * ones
            _, end = miras_chunkwise(
                M, None, k, seen, Gates(0 * ones, None, ones), typical, state, bias=bias, retention=Keep(), segment_length=1
            )
            clean = ~bad
            wrong = (k @ end.weights[0] - v)[0, 0, clean].square().sum() / v[0, 0, clean].square().sum()
            errors[name].append(float(wrong))
    squared, huber = (sum(errors[name]) / 10 for name in ("squared", "huber"))
    assert huber < 0.5 * squared, (huber, squared)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Power(p=0.5), "p must be at least 1"),
        (lambda: NormQ(q=1.0), "q must be at least 2"),
        (lambda: Simplex(scale=0.0), "scale must be above 0"),
        (lambda: Elastic(threshold=-1.0), "threshold must be at least 0"),
        (lambda: Bounded(bound=0.0), "bound must be above 0"),
        (lambda: Huber().slope(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), None), "needs delta"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(ConfigError, match=says):
        call()

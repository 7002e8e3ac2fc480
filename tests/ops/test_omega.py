"""The Omega rule: chunks are the definition for every window, and Titans is a window of one."""

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.fast_network import Factors, mlp
from memseq.ops.muon import momenta
from memseq.ops.newton_schulz import Root, newton_schulz
from memseq.ops.omega import Window, omega_chunkwise, omega_recurrent, window_weights
from memseq.ops.polynomial import monomials, polynomial_features
from memseq.ops.titans import FastState, Gates, squared_error, titans_chunkwise

B, H, T, K = 2, 2, 17, 4
F64 = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
A = torch.tensor([0.5, 1.0, 0.5], dtype=F64)
PLAIN, POLYNOMIAL = (lambda k: k), (lambda k: polynomial_features(k, A))


def hebbian(prediction, value):
    return -value + 0 * prediction


def made(network, *, momentum, window, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=F64)

    q, k, v = (draw(B, H, T, K) for _ in range(3))
    gamma = draw(B, H, T).sigmoid()
    gates = Gates(-0.1 * draw(B, H, T).abs(), -draw(B, H, T).abs() if momentum else None, 0.1 * draw(B, H, T).abs())
    weights = tuple(0.5 * draw(B, H, *layer.shape) for layer in network.fast)
    carried = tuple(0.1 * draw(*W.shape) for W in weights) if momentum else ()
    held = Window(draw(B, H, window - 1, K), draw(B, H, window - 1, K), draw(B, H, window - 1).sigmoid())
    inputs = [q, k, v, gamma, gates.keep, gates.step, *weights, *carried, *(held if window > 1 else ())]
    for t in inputs:
        t.requires_grad_()
    return q, k, v, gamma, gates, FastState(weights, carried, weights, torch.zeros(B, dtype=torch.int64)), held, inputs


@pytest.mark.parametrize("window", [1, 3, 6, 9])  # shorter than a segment, as long, longer
@pytest.mark.parametrize(
    ("network", "features", "muon", "momentum"),
    [
        (mlp((K, 5, K), norm=True, residual=True), PLAIN, None, True),
        (mlp((15, 5, K)), POLYNOMIAL, None, False),
        (mlp((K, K)), PLAIN, 3, True),
        (mlp((15, 5, K)), POLYNOMIAL, 2, True),
        (mlp((K, 5, K), gated=True, residual=True), PLAIN, 5, False),
    ],
    ids=["normed, momentum", "polynomial", "matrix, Muon", "polynomial, Muon", "gated, Muon without momentum"],
)
def test_chunks_are_the_definition(network, features, muon, momentum, window):
    q, k, v, gamma, gates, state, held, inputs = made(network, momentum=momentum, window=window)
    options = {"slope": squared_error, "features": features, "segment_length": 6, "muon": muon, "limit": 2.0}
    y, end, last = omega_recurrent(network, q, k, v, gamma, gates, state, held, **options)
    loss = y.square().sum() + sum(W.sum() for W in (*end.weights, *end.momentum))
    expected = torch.autograd.grad(loss, inputs, allow_unused=True)
    for chunk_size in (4, 64):
        found, after, left = omega_chunkwise(network, q, k, v, gamma, gates, state, held, chunk_size=chunk_size, **options)
        assert_close(found, y, **TIGHT)
        assert_close(after, end, **TIGHT)
        assert_close(left, last, **TIGHT)
        loss = found.square().sum() + sum(W.sum() for W in (*after.weights, *after.momentum))
        for a, b in zip(torch.autograd.grad(loss, inputs, allow_unused=True), expected, strict=True):
            assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("momentum", [False, True])
def test_a_window_of_one_token_that_counts_is_titans(momentum):
    network = mlp((K, 5, K))
    q, k, v, gamma, gates, state, held, _ = made(network, momentum=momentum, window=1)
    ones, options = torch.ones_like(gamma), {"slope": squared_error, "features": PLAIN, "segment_length": 6}
    y, end, _ = omega_chunkwise(network, q, k, v, ones, gates, state, held, **options)
    expected, wanted = titans_chunkwise(network, q, k, v, gates, state, segment_length=6)
    assert_close(y, expected, **TIGHT)
    assert_close(end, wanted, **TIGHT)
    # Muon without iterations is descent with the step outside of the momentum
    if not momentum:
        y, _, _ = omega_chunkwise(network, q, k, v, ones, gates, state, held, muon=0, **options)
        assert_close(y, expected, **TIGHT)


def test_hebbian_writes_to_a_matrix_are_a_sum_over_the_window():
    network = mlp((K, K))
    q, k, v, gamma, gates, state, held, _ = made(network, momentum=False, window=3)
    gates = gates._replace(keep=torch.zeros_like(gates.keep), step=torch.ones_like(gates.step))
    y, _, _ = omega_chunkwise(network, q, k, v, gamma, gates, state, held, slope=hebbian, features=PLAIN, segment_length=6)
    keys, values, weights = held.followed_by(k, v, gamma)
    (W,) = state.weights
    for t in range(T):
        for i in range(t, t + 3):  # places in the window and the tokens
            W = W + weights[:, :, i, None, None] * keys[:, :, i, :, None] * values[:, :, i, None]
        assert_close(y[:, :, t], (q[:, :, t, None] @ W)[:, :, 0], **TIGHT)


def test_the_window_counts_each_token_as_long_as_it_is_in_it():
    gamma = torch.tensor([[[2.0, 3.0, 5.0, 7.0]]])
    assert window_weights(gamma, 2)[0, 0].tolist() == [[2, 3, 5, 0], [0, 3, 5, 7]]
    assert window_weights(gamma, 4)[0, 0].tolist() == torch.diag(gamma[0, 0]).tolist()


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_features_have_a_polynomial_kernel(degree):
    torch.manual_seed(degree)
    q, k = torch.randn(6, 5, dtype=F64), torch.randn(6, 5, dtype=F64)
    a = torch.rand(degree + 1, dtype=F64)
    kernel = sum(a[i] * (q * k).sum(-1) ** i for i in range(degree + 1))
    assert_close((polynomial_features(q, a) * polynomial_features(k, a)).sum(-1), kernel, **TIGHT)
    assert sum(len(monomials(16, i)[0]) for i in range(3)) == 153


def test_newton_schulz_brings_singular_values_near_one_and_leaves_zero_alone():
    torch.manual_seed(0)
    for shape in ((8, 5), (5, 8), (6, 6)):
        U, _, V = torch.linalg.svd(torch.randn(*shape, dtype=F64), full_matrices=False)
        values = torch.linspace(0.01, 1.0, min(shape), dtype=F64)
        found = newton_schulz(U * values @ V)
        singular = torch.linalg.svdvals(found)
        assert float(singular.min()) > 0.67
        assert float(singular.max()) < 1.22
        assert_close(found @ V.mT / (U * singular.flip(0)).norm(dim=0), found @ V.mT / (U * singular.flip(0)).norm(dim=0))
    zero = torch.zeros(3, 4, dtype=F64, requires_grad=True)
    found = newton_schulz(zero)
    assert not found.any()
    assert torch.autograd.grad(found.sum(), zero)[0].isfinite().all()


@pytest.mark.parametrize("values", [[1.0, 0.5, 0.02, 0.0], [0.7, 0.7, 0.7, 0.7], [0.0, 0.0, 0.0, 0.0]], ids=["apart", "equal", "zero"])
def test_the_root_of_a_gram_matrix_is_what_newton_schulz_multiplies_by_and_so_is_its_gradient(values):
    """Also where eigenvalues are equal, of which quotients of differences would make nothing."""
    torch.manual_seed(0)
    U, _, V = torch.linalg.svd(torch.randn(3, 7, 4, dtype=F64), full_matrices=False)
    S, d = (U * torch.tensor(values, dtype=F64) @ V).requires_grad_(), torch.randn(3, 7, 4, dtype=F64)
    for steps in (1, 5):
        y = newton_schulz(S, steps)
        A = (S.mT @ S).detach()
        root = Root.of(A, steps)
        assert_close(S @ root.matrix(), y, rtol=1e-9, atol=1e-11)
        found = d @ root.matrix() + 2 * S @ root.back(S.mT @ d, steps)
        expected = torch.autograd.grad((y * d).sum(), S)[0]
        assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.detach().abs().max()))


def test_factors_of_very_different_sizes_leave_the_gradient_of_muon_in_float32():
    """Tokens whose inputs are a millionth of the others' while their errors are a thousand times as large, as under a soft limit."""
    torch.manual_seed(0)
    X, g, S_0 = torch.randn(1, 1, 12, 6), torch.randn(1, 1, 12, 5), torch.randn(1, 1, 6, 5)
    X, g = torch.where(torch.arange(12)[:, None] % 2 == 0, 1e-6, 1.0) * X, torch.where(torch.arange(12)[:, None] % 2 == 0, 1e3, 1.0) * g
    carried, counts, d = torch.rand(1, 1, 4), torch.rand(1, 1, 4, 12), torch.randn(1, 1, 4, 5, 5)
    gradients = []
    for dtype in (torch.float32, F64):
        given = [z.to(dtype).requires_grad_() for z in (X, g, S_0, carried, counts)]
        roots = momenta(Factors(given[0], given[1]), given[2], given[3], given[4], 5).roots
        gradients.append(torch.autograd.grad((roots * d.to(dtype)).sum(), given))
    for low, high in zip(*gradients, strict=True):
        assert_close(low.double(), high, rtol=0, atol=2e-2 * float(high.abs().max()))


def test_a_root_of_what_is_hardly_there_or_not_finite():
    grown = torch.tensor([3.0, 2.8, 1e-21, 2.0, 0.0, 1e-21])
    A = torch.stack([grown[:, None] * grown, torch.full((6, 6), torch.nan)])
    root = Root.of(A, 5).matrix()
    assert root[0].isfinite().all()
    assert root[1].isnan().all()
    assert_close(root[0], Root.of(A[0].double(), 5).matrix().float(), rtol=1e-2, atol=1.0)

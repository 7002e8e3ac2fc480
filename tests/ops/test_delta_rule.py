"""The gated delta rule: the definition, the form by chunks, gradients, what it recalls, and what float32 costs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memseq.ops.linear_attention import decay_recurrent, delta_chunkwise, delta_recurrent

T = 37


def inputs(B: int = 2, H: int = 2, n: int = T, K: int = 5, V: int = 3, *, state: bool = True) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    q, k, v = draw(B, H, n, K), F.normalize(draw(B, H, n, K), dim=-1), draw(B, H, n, V)
    beta, log_a = torch.rand(B, H, n, generator=random, dtype=torch.float64), -torch.rand(B, H, n, generator=random, dtype=torch.float64)
    S = draw(B, H, K, V) if state else torch.zeros(B, H, K, V, dtype=torch.float64)
    return [z.requires_grad_() for z in (q, k, v, beta, log_a, S)]


def read_and_gradients(op, leaves: list[Tensor], **how) -> list[Tensor]:
    y, S = op(*leaves, **how)
    weighted = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() + (S.sin() * 0.7).sum()
    return [y, S, *torch.autograd.grad(weighted, leaves)]


def relative(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach(), exact.detach()
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, T])
@pytest.mark.parametrize("state", [True, False])
def test_by_chunks_it_is_the_definition(chunk_size: int, state: bool) -> None:
    leaves = inputs(state=state)
    expected = read_and_gradients(delta_recurrent, leaves)
    for found, exact in zip(read_and_gradients(delta_chunkwise, leaves, chunk_size=chunk_size), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_the_definition_is_the_product_that_it_stands_for() -> None:
    q, k, v, beta, log_a, S = (z.detach()[0, 0] for z in inputs())
    y, end = (z[0, 0] for z in delta_recurrent(*(z.detach() for z in inputs())))
    for t in range(T):
        erased = torch.eye(5, dtype=torch.float64) - beta[t] * torch.outer(k[t], k[t])
        S = log_a[t].exp() * erased @ S + beta[t] * torch.outer(k[t], v[t])
        torch.testing.assert_close(y[t], q[t] @ S, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, S, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *z: delta_chunkwise(*z, chunk_size=2), inputs(B=1, H=1, n=5))


def test_a_second_derivative_is_refused() -> None:
    leaves = inputs(B=1, H=1, n=4)
    (dq,) = torch.autograd.grad(delta_chunkwise(*leaves, chunk_size=2)[0].square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize("cut", [1, 5, 16, 36])
def test_a_stream_may_be_cut_anywhere(cut: int) -> None:
    *tokens, S = (z.detach() for z in inputs())
    whole, end = delta_chunkwise(*tokens, S, chunk_size=8)
    first, between = delta_chunkwise(*(z[:, :, :cut] for z in tokens), S, chunk_size=8)
    rest, after = delta_chunkwise(*(z[:, :, cut:] for z in tokens), between, chunk_size=8)
    torch.testing.assert_close(torch.cat([first, rest], dim=2), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after, end, rtol=1e-10, atol=1e-12)


def test_orthonormal_keys_recall_exactly() -> None:
    keys = torch.linalg.qr(torch.randn(2, 2, 16, 16, dtype=torch.float64))[0]
    values = torch.randn(2, 2, 16, 7, dtype=torch.float64)
    one, zero = torch.ones(2, 2, 16, dtype=torch.float64), torch.zeros(2, 2, 16, dtype=torch.float64)
    _, S = delta_chunkwise(keys, keys, values, one, zero, torch.zeros(2, 2, 16, 7, dtype=torch.float64), chunk_size=5)
    torch.testing.assert_close(keys @ S, values, rtol=1e-12, atol=1e-12)


def test_a_key_that_comes_again_replaces_where_decay_alone_adds() -> None:
    keys = torch.linalg.qr(torch.randn(1, 1, 8, 8, dtype=torch.float64))[0]
    old, new = torch.randn(2, 1, 1, 8, 7, dtype=torch.float64)
    k, v = torch.cat([keys, keys], dim=2), torch.cat([old, new], dim=2)
    one, zero, S = torch.ones(1, 1, 16, dtype=torch.float64), torch.zeros(1, 1, 16, dtype=torch.float64), torch.zeros(1, 1, 8, 7).double()
    torch.testing.assert_close(keys @ delta_chunkwise(k, k, v, one, zero, S, chunk_size=4)[1], new, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(keys @ decay_recurrent(k, k, v, zero, S)[1], old + new, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "added", "replaced"), [(16, 15 / 32, 0.293), (32, 31 / 32, 0.598), (64, 63 / 32, 1.04)])
def test_capacity_is_that_of_the_theory(n: int, added: float, replaced: float) -> None:
    """Relative squared error of recall, n random unit keys in a 32 x 32 matrix, written once: mean of 200 draws.

    Keys that are added err by (n - 1) / K.
    """
    torch.manual_seed(0)
    k, v = F.normalize(torch.randn(200, 1, n, 32, dtype=torch.float64), dim=-1), torch.randn(200, 1, n, 32, dtype=torch.float64)
    one, zero = torch.ones(200, 1, n, dtype=torch.float64), torch.zeros(200, 1, n, dtype=torch.float64)
    S = torch.zeros(200, 1, 32, 32, dtype=torch.float64)

    def error(S: Tensor) -> float:
        return float(((k @ S - v).square().sum((1, 2, 3)) / v.square().sum((1, 2, 3))).mean())

    assert error(decay_recurrent(k, k, v, zero, S)[1]) == pytest.approx(added, rel=0.05)
    once = delta_chunkwise(k, k, v, one, zero, S)[1]
    assert error(once) == pytest.approx(replaced, rel=0.05)
    twice = {16: 0.108, 32: 0.403}
    if n in twice:
        assert error(delta_chunkwise(k, k, v, one, zero, once)[1]) == pytest.approx(twice[n], rel=0.1)


@pytest.mark.parametrize("chunk_size", [16, 32, 64, 256])
@pytest.mark.parametrize("case", ["random", "repeated", "nearly repeated", "strength 2", "open", "shut", "open and shut"])
def test_float32_is_off_by_the_written_error(case: str, chunk_size: int) -> None:
    q, k, v, beta, log_a, S = (z.detach() for z in inputs(B=1, H=1, n=300, K=32, V=16))
    match case:
        case "repeated":
            k, beta, log_a = k[:, :, :1].expand_as(k), torch.ones_like(beta), torch.zeros_like(log_a)
        case "nearly repeated":
            k, beta, log_a = F.normalize(k[:, :, :1] + 0.01 * k, dim=-1), torch.ones_like(beta), torch.zeros_like(log_a)
        case "strength 2":
            beta, log_a = 2 * torch.ones_like(beta), torch.zeros_like(log_a)
        case "open":
            log_a = torch.zeros_like(log_a)
        case "shut":
            log_a = torch.full_like(log_a, -30.0)
        case "open and shut":
            beta, log_a = (beta > 0.5).double(), -30.0 * (log_a > -0.2)
    leaves = [z.float().requires_grad_() for z in (q, k, v, beta, log_a, S)]
    exact = read_and_gradients(delta_recurrent, [z.detach().double().requires_grad_() for z in leaves])
    found = read_and_gradients(delta_chunkwise, leaves, chunk_size=chunk_size)
    errors = [relative(a, b) for a, b in zip(found, exact, strict=True)]
    assert max(errors[:2]) < 2e-6
    assert max(errors) < 6e-6


def test_lower_precision_is_computed_in_the_precision_of_the_state() -> None:
    *tokens, S = (z.detach() for z in inputs())
    tokens, S = [z.bfloat16() for z in tokens], S.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, end = delta_chunkwise(*tokens, S, chunk_size=8)
    expected, _ = delta_recurrent(*(z.double() for z in tokens), S.double())
    assert y.dtype == end.dtype == torch.float32
    assert relative(y, expected) < 1e-6


def test_nothing_that_was_given_is_written_to() -> None:
    leaves = inputs()
    before = [z.detach().clone() for z in leaves]
    read_and_gradients(delta_chunkwise, leaves, chunk_size=8)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))

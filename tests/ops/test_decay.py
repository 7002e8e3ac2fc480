"""The decay op: the definition, the form by chunks, gradients, shared keys, and what float32 costs."""

import pytest
import torch
from torch import Tensor

from memseq.errors import InputError
from memseq.ops.linear_attention import decay_chunkwise, decay_recurrent, delta_recurrent, form_for

T = 37


def inputs(B: int = 2, G: int = 2, H: int = 2, n: int = T, *, dtype: torch.dtype = torch.float64, state: bool = True) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=dtype)

    q, k, v = draw(B, G, n, 5), draw(B, G, n, 5), draw(B, H, n, 3)
    log_a = -torch.rand(B, H, n, generator=random, dtype=dtype)
    S = draw(B, H, 5, 3) if state else torch.zeros(B, H, 5, 3, dtype=dtype)
    return [z.requires_grad_() for z in (q, k, v, log_a, S)]


def read_and_gradients(op, leaves: list[Tensor], **how) -> list[Tensor]:
    y, S = op(*leaves, **how)
    weighted = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() + (S.sin() * 0.7).sum()
    return [y, S, *torch.autograd.grad(weighted, leaves)]


def relative(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach(), exact.detach()
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, T])
@pytest.mark.parametrize(("G", "H"), [(2, 2), (1, 3), (2, 4)])
@pytest.mark.parametrize("state", [True, False])
def test_by_chunks_it_is_the_definition(chunk_size: int, G: int, H: int, state: bool) -> None:
    leaves = inputs(G=G, H=H, state=state)
    expected = read_and_gradients(decay_recurrent, leaves)
    for found, exact in zip(read_and_gradients(decay_chunkwise, leaves, chunk_size=chunk_size), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


def test_the_definition_is_the_sum_that_it_stands_for() -> None:
    q, k, v, log_a, S = (z.detach() for z in inputs(B=1, G=1, H=1, n=6))
    y, end = decay_recurrent(q, k, v, log_a, S)
    c = log_a[0, 0].cumsum(0)
    for t in range(6):
        M = c[t].exp() * S[0, 0] + sum((c[t] - c[j]).exp() * torch.outer(k[0, 0, j], v[0, 0, j]) for j in range(t + 1))
        torch.testing.assert_close(y[0, 0, t], q[0, 0, t] @ M, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end[0, 0], M, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    leaves = inputs(B=1, G=1, H=2, n=5)
    assert torch.autograd.gradcheck(lambda *z: decay_chunkwise(*z, chunk_size=2), leaves)


def test_a_second_derivative_is_refused() -> None:
    leaves = inputs(B=1, G=1, H=1, n=4)
    (dq,) = torch.autograd.grad(decay_chunkwise(*leaves, chunk_size=2)[0].square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dq.sum().backward()


@pytest.mark.parametrize("cut", [1, 5, 16, 36])
def test_a_stream_may_be_cut_anywhere(cut: int) -> None:
    q, k, v, log_a, S = (z.detach() for z in inputs())
    whole, end = decay_chunkwise(q, k, v, log_a, S, chunk_size=8)
    first, between = decay_chunkwise(*(z[:, :, :cut] for z in (q, k, v, log_a)), S, chunk_size=8)
    rest, after = decay_chunkwise(*(z[:, :, cut:] for z in (q, k, v, log_a)), between, chunk_size=8)
    torch.testing.assert_close(torch.cat([first, rest], dim=2), whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after, end, rtol=1e-10, atol=1e-12)


def test_keys_that_are_shared_are_keys_that_are_repeated() -> None:
    q, k, v, log_a, S = inputs(G=2, H=6)
    shared = decay_chunkwise(q, k, v, log_a, S, chunk_size=8)
    repeated = decay_chunkwise(q.repeat_interleave(3, 1), k.repeat_interleave(3, 1), v, log_a, S, chunk_size=8)
    for a, b in zip(shared, repeated, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="6 heads of values cannot share 4 groups"):
        decay_chunkwise(q[:, [0, 0, 0, 0]], k[:, [0, 0, 0, 0]], v, log_a, S)


def test_without_the_erasure_the_delta_rule_is_this() -> None:
    """One write a key: where all keys are orthogonal there is nothing to erase."""
    k = torch.eye(8, dtype=torch.float64)[None, None]
    v, log_a = torch.randn(1, 1, 8, 3, dtype=torch.float64), -torch.rand(1, 1, 8, dtype=torch.float64)
    S = torch.zeros(1, 1, 8, 3, dtype=torch.float64)
    q = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    for a, b in zip(decay_recurrent(q, k, v, log_a, S), delta_recurrent(q, k, v, torch.ones_like(log_a), log_a, S), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
@pytest.mark.parametrize("log_a", [0.0, -0.1, -30.0])
def test_float32_is_off_by_the_written_error(chunk_size: int, log_a: float) -> None:
    leaves = inputs(B=1, n=300)
    leaves[3] = torch.full_like(leaves[3], log_a).requires_grad_()
    exact = read_and_gradients(decay_recurrent, leaves)
    found = read_and_gradients(decay_chunkwise, [z.detach().float().requires_grad_() for z in leaves], chunk_size=chunk_size)
    assert max(relative(a, b) for a, b in zip(found, exact, strict=True)) < 2e-6


def test_lower_precision_is_computed_in_the_precision_of_the_state() -> None:
    leaves = [z.detach().bfloat16() for z in inputs()]
    S = leaves[-1].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, end = decay_chunkwise(*leaves[:-1], S, chunk_size=8)
    expected, _ = decay_recurrent(*(z.double() for z in leaves[:-1]), S.double())
    assert y.dtype == end.dtype == torch.float32
    assert relative(y, expected) < 1e-6


def test_the_form_is_chosen_by_the_number_of_tokens() -> None:
    assert form_for(1, 64) == form_for(9, 1) == "recurrent"
    assert form_for(2, 64) == "chunkwise"


def test_nothing_that_was_given_is_written_to() -> None:
    leaves = [z.detach().requires_grad_() for z in inputs()]
    before = [z.detach().clone() for z in leaves]
    read_and_gradients(decay_chunkwise, leaves, chunk_size=8)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))

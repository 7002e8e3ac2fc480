"""Elementwise recurrences: fast forms against their definitions, gradients too, with and without a limit."""

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.hadamard import hadamard_chunkwise, hadamard_recurrent, scan_chunkwise, scan_recurrent

F64 = torch.float64
B, T, K, V = 2, 71, 4, 5
CHUNKS = [1, 7, 16, 64, T]


def inputs(dtype=F64):
    """q, k, v, c, theta and a matrix that has a past."""
    return [*(torch.randn(B, T, n, dtype=dtype) for n in (K, K, V, K, V)), torch.randn(B, K, V, dtype=dtype)]


def everything(form, given):
    leaves = [t.clone().requires_grad_() for t in given]
    values = form(*leaves)
    generator = torch.Generator().manual_seed(3)
    total = sum((t * torch.randn(t.shape, generator=generator, dtype=F64).to(t.dtype)).sum() for t in values)
    return [*(t.detach() for t in values), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("limit", [None, 1.5])
def test_chunks_have_the_values_and_gradients_of_the_definition(limit, chunk_size):
    given = inputs()
    wanted = everything(lambda *x: hadamard_recurrent(*x, limit=limit), given)
    found = everything(lambda *x: hadamard_chunkwise(*x, limit=limit, chunk_size=chunk_size), given)
    assert limit is None or 0.01 < float((wanted[1].abs() == limit).double().mean()) < 0.9  # some elements are held
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-11)


def test_float32_stays_near_float64():
    given = inputs(torch.float32)
    wanted = everything(hadamard_recurrent, [t.double() for t in given])
    for f, w in zip(everything(hadamard_chunkwise, given), wanted, strict=True):
        assert_close(f.double(), w, rtol=1e-4, atol=1e-4 * float(w.abs().max()))


def test_pieces_carry_on_from_the_matrix():
    *tokens, M = inputs()
    y, pieces = [], [1, 40, 7, 23]
    whole, end = hadamard_chunkwise(*tokens, M)
    for piece in zip(*(t.split(pieces, 1) for t in tokens), strict=True):
        out, M = hadamard_chunkwise(*piece, M)
        y.append(out)
    assert_close(torch.cat(y, dim=1), whole, rtol=1e-12, atol=1e-12)
    assert_close(M, end, rtol=1e-12, atol=1e-12)


def test_without_calibration_it_is_linear_attention():
    q, k, v, _, _, M = inputs()
    zero = torch.zeros(B, T, K, dtype=F64), torch.zeros(B, T, V, dtype=F64)
    y, _ = hadamard_chunkwise(q, k, v, *zero, M)
    assert_close(y, (q @ k.mT).tril() @ v + q @ M, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_the_general_scan_is_the_recurrence(chunk_size):
    given = [2 * torch.rand(B, T, K, V, dtype=F64), torch.randn(B, T, K, V, dtype=F64), torch.randn(B, K, V, dtype=F64)]
    given[0][:, 5] = 0.0  # everything is forgotten at once: a form that divides by products would end here
    wanted = everything(lambda *x: (scan_recurrent(*x),), given)
    for f, w in zip(everything(lambda *x: (scan_chunkwise(*x, chunk_size=chunk_size),), given), wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-10)


def test_the_memory_is_the_general_scan_of_its_calibration():
    q, k, v, c, theta, M = inputs()
    C = 1 + torch.tanh(torch.einsum("b t k, b t v -> b t k v", c, theta))
    states = scan_chunkwise(C, torch.einsum("b t k, b t v -> b t k v", k, v), M)
    y, end = hadamard_chunkwise(q, k, v, c, theta, M)
    assert_close(y, torch.einsum("b t k, b t k v -> b t v", q, states), rtol=1e-11, atol=1e-11)
    assert_close(end, states[:, -1], rtol=1e-11, atol=1e-11)


def test_a_calibration_at_both_ends_of_its_range():
    """C of 0 and of 2 to the last digit: twice as much every token, and nothing left."""
    q, k, v, _, _, M = inputs()
    c = torch.full((B, T, K), 50.0, dtype=F64)
    theta = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0], dtype=F64).expand(B, T, V)
    for form in (hadamard_recurrent, hadamard_chunkwise):
        _, end = form(q[:, :20], 0 * k[:, :20], v[:, :20], c[:, :20], theta[:, :20], M)
        assert_close(end[..., 0], M[..., 0] * 2**20, rtol=1e-12, atol=0.0)
        assert bool((end[..., 1].abs() < 1e-300).all())
        assert_close(end[..., 4], M[..., 4], rtol=0, atol=0)

"""The associative matrix: the fast write is the definition, and what it does to keys that are orthogonal is exact."""

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.associative import EPSILON, dpfp, read, write, write_definition

B, F, D = 2, 6, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("epsilon", [EPSILON, 1.0])
def test_all_keys_in_one_product_are_one_after_the_other(n, full, epsilon):
    leaves = [draw(B, n, F).relu(), draw(B, n, D, seed=1), draw(B, n, seed=2).sigmoid()]
    leaves += [full * draw(B, F, D, seed=3), full * draw(B, F, seed=4).abs()]
    leaves = [t.requires_grad_() for t in leaves]
    found, wanted = write(*leaves, epsilon), write_definition(*leaves, epsilon)
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(sum(t.sin().sum() for t in result), leaves) for result in (found, wanted)]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_was_stored_under_an_orthogonal_key_is_read_and_replaced_exactly():
    """beta = 1 and one-hot keys: a read gives the value (up to eps in the division), rewriting a key replaces it, z counts keys once."""
    keys, values = torch.eye(F, dtype=torch.float64)[None, :4], draw(1, 4, D)
    one = torch.ones(1, 4, dtype=torch.float64)
    A, z = write(keys, values, one, torch.zeros(1, F, D, dtype=torch.float64), torch.zeros(1, F, dtype=torch.float64))
    share = 1 / (1 + EPSILON)
    assert_close(read(keys, A, z), share * values, rtol=1e-12, atol=0)
    assert_close(z, keys.sum(1), rtol=0, atol=0)
    new = draw(1, 2, D, seed=1)
    A, z_again = write(keys[:, :2], new, one[:, :2], A, z)
    known = 1 - 1 / (1 + EPSILON)  # of a key that is there: z grows by eps only
    assert_close(z_again - z, known * keys[:, :2].sum(1), rtol=1e-6, atol=1e-14)
    assert_close(read(keys[:, :2], A, z), share * (new + (1 - share) * values[:, :2]), rtol=1e-12, atol=0)
    assert_close(read(keys[:, 2:], A, z), share * values[:, 2:], rtol=1e-12, atol=0)  # the others are as they were


def test_a_larger_epsilon_bounds_the_gradient_of_a_query_that_meets_little():
    """|d read / d q| is |A| over q^T z + eps, about: 1e5 of it at eps = 1e-5 where the query meets nothing, 1 at eps = 1."""
    k, v = torch.zeros(1, 1, F, dtype=torch.float64), draw(1, 1, D)
    k[..., 0] = 1
    A, z = write(
        k, v, torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, F, D, dtype=torch.float64), torch.zeros(1, F, dtype=torch.float64)
    )
    q = torch.zeros(1, 1, F, dtype=torch.float64, requires_grad=True)  # nothing is met
    steep, mild = (torch.autograd.grad(read(q, A, z, eps).sum(), q)[0].abs().max().item() for eps in (EPSILON, 1.0))
    assert_close(steep * EPSILON, mild, rtol=1e-4, atol=0)
    assert mild < 2 * v.abs().sum().item()


def test_a_matrix_that_holds_nothing_reads_nothing():
    q = draw(B, 3, F).relu()
    assert torch.equal(read(q, draw(B, F, D) * 0, draw(B, F) * 0), torch.zeros(B, 3, D, dtype=torch.float64))


def test_features_are_the_definition():
    a, nu = draw(3, 4), 3
    u = torch.cat([a.clamp(min=0), (-a).clamp(min=0)], dim=-1)
    wanted = torch.empty(3, 8 * nu, dtype=torch.float64)
    for j in range(1, nu + 1):
        for i in range(8):
            wanted[:, 8 * (j - 1) + i] = u[:, i] * u[:, (i - j) % 8]
    assert torch.equal(dpfp(a, nu), wanted)

"""Elementwise recurrences by Triton's kernels, under its interpreter where there is no GPU: equal to the definition, gradients too."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("triton", reason="Triton is not installed; on Linux pip install 'memseq[dev]' brings it")

from memseq.ops.hadamard import hadamard_chunkwise, hadamard_recurrent, scan_chunkwise, scan_recurrent
from memseq.ops.kernels import elementwise, use

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def everything(form, given: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in given]
    values = form(*leaves)
    total = sum((t * torch.linspace(-1, 2, t.numel(), device=DEVICE).view_as(t)).sum() for t in values)
    return [*(t.detach() for t in values), *torch.autograd.grad(total, leaves)]


def check(form, definition, given: list[Tensor]) -> None:
    wanted = everything(definition, [t.double() for t in given])
    with use("triton"):
        found = everything(form, given)
    for f, w in zip(found, wanted, strict=True):
        assert_close(f.double(), w, rtol=1e-5, atol=1e-5 * float(w.abs().max()))


@pytest.mark.parametrize("shape", [(3,), (4, 5)], ids=str)
def test_the_scan_is_the_recurrence(shape: tuple[int, ...]) -> None:
    C, U, M = 2 * torch.rand(2, 13, *shape, device=DEVICE), draw(2, 13, *shape), draw(2, *shape)
    C[:, 5] = 0.0  # everything is forgotten at once
    check(lambda *x: (scan_chunkwise(*x),), lambda *x: (scan_recurrent(*x),), [C, U, M])


def test_the_scan_over_more_elements_than_a_program_holds(monkeypatch) -> None:
    monkeypatch.setattr(elementwise, "ELEMENTS", 8)
    given = [torch.rand(2, 5, 4, 5, device=DEVICE), draw(2, 5, 4, 5), draw(2, 4, 5)]
    check(lambda *x: (scan_chunkwise(*x),), lambda *x: (scan_recurrent(*x),), given)


@pytest.mark.parametrize("limit", [None, 1.5])
@pytest.mark.parametrize(("T", "chunk_size"), [(13, 4), (8, 8), (5, 16)])
def test_the_memory_is_its_definition(limit: float | None, T: int, chunk_size: int) -> None:
    given = [*(draw(2, T, n) for n in (3, 3, 5, 3, 5)), draw(2, 3, 5)]
    check(lambda *x: hadamard_chunkwise(*x, limit=limit, chunk_size=chunk_size), lambda *x: hadamard_recurrent(*x, limit=limit), given)


def test_columns_of_several_programs(monkeypatch) -> None:
    monkeypatch.setattr(elementwise, "MATRIX", 8)  # 4 x 2 of a matrix of 3 x 5
    given = [*(draw(1, 7, n) for n in (3, 3, 5, 3, 5)), draw(1, 3, 5)]
    check(lambda *x: hadamard_chunkwise(*x, chunk_size=4), hadamard_recurrent, given)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's, under the interpreter: 2 / inf is the 0 that is meant
def test_a_calibration_at_both_ends_of_its_range() -> None:
    """C of 0 and of 2 to the last digit: twice as much every token, and nothing left."""
    q, k, v, M = draw(1, 9, 3), draw(1, 9, 3), draw(1, 9, 2), draw(1, 3, 2)
    c, theta = torch.full((1, 9, 3), 50.0, device=DEVICE), torch.tensor([1.0, -1.0], device=DEVICE).expand(1, 9, 2)
    with use("triton"):
        _, end = hadamard_chunkwise(q, 0 * k, v, c, theta, M)
    assert_close(end[..., 0], M[..., 0] * 2**9, rtol=1e-6, atol=0.0)
    assert bool((end[..., 1] == 0).all())

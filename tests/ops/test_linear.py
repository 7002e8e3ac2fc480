"""The products of `ops/linear.py` are those of torch, whichever library makes them."""

import pytest
import torch
from torch import float32, float64, nn, randn
from torch.autograd import grad
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from memseq.layers import linear as layers
from memseq.ops import linear as ops

here = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN"
)  # where it is, its sums are right, fast or not


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(ops, "onednn_is_faster", lambda: True)


def given(*shape: int, outputs: int = 300, dtype: torch.dtype = float32) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(t.to(dtype).requires_grad_() for t in (randn(*shape), randn(outputs, shape[-1]), randn(outputs)))


@here
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(64, 130), (3, 40, 130)], ids=str)
def test_values_gradients_and_second_gradients(onednn, shape, bias):
    x, w, b = given(*shape)
    inputs = (x, w, b) if bias else (x, w)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    y, right = ops.linear(*inputs), F.linear(*exact)
    assert isinstance(y.grad_fn, ops._Linear._backward_cls)  # it was oneDNN's
    dy = randn_like(y)
    first, first_right = grad(y, inputs, dy, create_graph=True), grad(right, exact, dy.double(), create_graph=True)
    second, second_right = (grad(g[0].square().sum() + g[1].square().sum(), i[:2]) for g, i in ((first, inputs), (first_right, exact)))
    for ours, theirs in zip((y, *first, *second), (right, *first_right, *second_right), strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5 * float(theirs.detach().abs().max()))


def randn_like(t: torch.Tensor) -> torch.Tensor:
    return torch.randn(t.shape, dtype=t.dtype)


@here
def test_any_strides(onednn):
    x, w, _ = given(4, 64, 128)
    wide = randn(4, 64, 256)
    cases = {
        "a slice of features": (wide[..., :128], w),
        "transposed": (randn(4, 128, 64).mT, w),
        "expanded": (x[:1, :1].expand(4, 64, 128), w),
        "rows of a larger weight": (x, randn(900, 128)[300:600]),
        "a transposed weight": (x, randn(128, 300).mT),
    }
    for name, (x, w) in cases.items():
        assert_close(ops.linear(x, w), F.linear(x, w), rtol=1e-4, atol=1e-4, msg=name)


def test_one_who_counts_operations_sees_all_of_them(onednn):
    x, w, b = given(4, 64, 128)
    with FlopCounterMode(display=False) as counter:
        ops.linear(x, w, b).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * x.numel() * w.shape[0]


@pytest.mark.parametrize("why", ["float64", "few rows", "autocast", "subclass"])
def test_what_does_not_suit_is_torchs_own(onednn, why):
    x, w, b = given(*((4, 64, 128) if why != "few rows" else (4, 128)), dtype=float64 if why == "float64" else float32)
    if why == "subclass":
        w = w.detach().as_subclass(type("Other", (torch.Tensor,), {}))
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert torch.equal(torch.as_tensor(ops.linear(x, w, b)), torch.as_tensor(F.linear(x, w, b)))


def test_the_layer_is_torchs_layer_by_its_names_and_its_start():
    torch.manual_seed(3)
    ours = layers.Linear(7, 5)
    torch.manual_seed(3)
    theirs = nn.Linear(7, 5)
    assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    x = randn(2, 7)
    assert torch.equal(ours(x), theirs(x))
    assert layers.weight_of(ours) is ours.weight

"""Rows of length one and of mean square one: torch's own numbers and gradients, whatever the strides; short rows too."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.normalize import rms, standard, standard_back, unit

FORMS = {
    "unit": (lambda x: unit(x, 1e-3), lambda x: F.normalize(x, dim=-1, eps=1e-3)),
    "rms": (lambda x: rms(x, 1e-3), lambda x: F.rms_norm(x, x.shape[-1:], None, 1e-3)),
}


@pytest.mark.parametrize("name", FORMS)
def test_it_is_torchs_function_and_gradient(name):
    mine, torchs = FORMS[name]
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64)
    x[0, 0] *= 1e-5  # rows shorter than eps
    x[0, 1] = 0.0
    x = x.transpose(1, 2).requires_grad_()
    weight = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    (found,), (wanted,) = (torch.autograd.grad((f(x) * weight).sum(), x) for f in (mine, torchs))
    assert_close(mine(x), torchs(x), rtol=1e-12, atol=1e-14)
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert mine(x).is_contiguous()


def test_standard_rows_and_the_product_by_their_derivative_with_its_gradient():
    torch.manual_seed(0)
    x, g = (torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y, scale = standard(x, 1e-3)
    assert_close(y, F.layer_norm(x, (5,), eps=1e-3))
    assert_close(scale, (x.var(-1, correction=0, keepdim=True) + 1e-3).rsqrt())
    assert_close(standard_back(g, y, scale), torch.autograd.grad(y, x, g, retain_graph=True)[0])
    assert torch.autograd.gradcheck(lambda x: standard(x, 1e-3), x)
    assert torch.autograd.gradcheck(lambda g, x: standard_back(g, *standard(x, 1e-3)), (g, x))

import pytest
import torch
from torch.nn import functional as F

from memseq.ops import short_conv as op


def reference(x, tail, weight, bias, silu):
    z = F.conv1d(torch.cat([tail, x], dim=1).mT, weight[:, None], bias, groups=len(weight)).mT
    return F.silu(z) if silu else z


@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("silu", [True, False])
def test_it_is_the_convolution_of_torch_with_its_gradients(monkeypatch, n: int, width: int, bias: bool, silu: bool) -> None:
    monkeypatch.setattr(op, "BLOCK", 2 * 3 * 16)  # blocks of 16 tokens, so that 50 are cut
    leaves = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in ((2, n, 3), (2, width - 1, 3), (3, width))]
    leaves.append(torch.randn(3, dtype=torch.float64).requires_grad_() if bias else None)
    y = (op.short_conv_silu if silu else op.short_conv)(*leaves)
    expected = reference(*leaves, silu)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    weight, of = torch.randn_like(y), [z for z in leaves if z is not None and z.numel()]
    for a, b in zip(torch.autograd.grad((y * weight).sum(), of), torch.autograd.grad((expected * weight).sum(), of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_stream_may_be_cut_anywhere(monkeypatch) -> None:
    monkeypatch.setattr(op, "BLOCK", 3 * 16)
    x, tail, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((1, 100, 3), (1, 3, 3), (3, 4), (3,)))
    whole = op.short_conv_silu(x, tail, weight, bias)
    seen = torch.cat([tail, x], dim=1)
    steps = [op.short_conv_silu(x[:, t : t + 1], seen[:, t : t + 3], weight, bias) for t in range(100)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-12, atol=1e-12)


def test_lower_precision_rounds_once() -> None:
    x, tail, weight = torch.randn(1, 20, 8).bfloat16(), torch.randn(1, 3, 8), torch.randn(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op.short_conv(x, tail, weight)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, reference(x.float(), tail, weight, None, False).bfloat16())

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.layers.head_norm import GateThenNorm, HeadNorm, NormThenGate, unit


def rms(x, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def test_each_is_what_its_line_says():
    x, z = torch.randn(2, 2, 5, 3, 8, dtype=torch.float64)
    w = torch.rand(8, dtype=torch.float64)
    for norm, expected in (
        (HeadNorm(8), lambda: w * rms(x, 1e-6)),
        (NormThenGate(8), lambda: w * rms(x, 1e-6) * F.silu(z)),
        (GateThenNorm(8), lambda: w * rms(x * F.silu(z), 1e-5)),
        (GateThenNorm(8, 2), lambda: w * rms((x * F.silu(z)).unflatten(-1, (2, 4)), 1e-5).flatten(-2)),
    ):
        norm = norm.double()
        norm.weight.data.copy_(w)
        assert_close(norm(x) if isinstance(norm, HeadNorm) else norm(x, z), expected(), rtol=1e-12, atol=1e-12)


def test_units_have_length_one_and_nothing_stays_nothing():
    x = torch.randn(4, 8, dtype=torch.float64)
    assert_close(unit(x).norm(dim=-1), torch.ones(4).double(), rtol=1e-6, atol=0)
    assert torch.equal(unit(torch.zeros(1, 8)), torch.zeros(1, 8))


def test_under_autocast_they_are_computed_in_float32():
    x, z, norm = torch.randn(5, 8), torch.randn(5, 8), NormThenGate(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x, z.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x, z.bfloat16().float()).bfloat16())
    assert unit(x.bfloat16()).dtype == torch.float32

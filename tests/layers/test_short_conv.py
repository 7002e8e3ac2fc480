import pytest
import torch

from memseq.errors import ConfigError
from memseq.layers.short_conv import ShortConv


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_is_the_sum_that_defines_it(width: int, bias: bool) -> None:
    conv = ShortConv(3, width, bias=bias).double()
    x, before = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, width - 1, 3, dtype=torch.float64)
    y, tail = conv(x, before)
    seen = torch.cat([before, x], dim=1)
    for t in range(7):
        expected = sum(conv.weight[:, i] * seen[:, t + i] for i in range(width)) + (conv.bias if bias else 0)
        torch.testing.assert_close(y[:, t], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(tail, seen[:, 7:])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_cuts_change_nothing(cut: int) -> None:
    conv = ShortConv(3, 4).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    whole, end = conv(x, conv.init_tail(2))
    first, tail = conv(x[:, :cut], conv.init_tail(2))
    rest, tail = conv(x[:, cut:], tail)
    torch.testing.assert_close(torch.cat([first, rest], dim=1), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(tail, end)


def test_the_tail_keeps_its_dtype_under_autocast_and_holds_no_more_than_itself() -> None:
    conv = ShortConv(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, tail = conv(torch.randn(1, 100, 8), conv.init_tail(1))
    assert tail.dtype == torch.float32
    assert tail.untyped_storage().nbytes() == 3 * 8 * 4


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="width of at least 1, got 0"):
        ShortConv(4, 0)

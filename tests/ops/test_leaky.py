"""Leaky cells: torch's own network at tau = 1, nothing forgotten at tau without end, and the folded form."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.leaky import leak_inside_cell, leak_inside_folded, leak_outside_cell, without_self
from memseq.ops.recurrent import scan

H = 6


def drawn(T=9):
    w = without_self(torch.randn(H, H, dtype=torch.float64)).requires_grad_()
    tau = (1 + torch.rand(H, dtype=torch.float64)).requires_grad_()
    return torch.randn(2, T, H, dtype=torch.float64, requires_grad=True), torch.randn(2, H, dtype=torch.float64), w, tau


@pytest.mark.parametrize("cell", [leak_inside_cell, leak_outside_cell])
@pytest.mark.parametrize("phi", ["tanh", "relu"])
def test_without_a_leak_it_is_torchs_network_with_a_zero_diagonal(cell, phi):
    module = nn.RNN(H, H, nonlinearity=phi, batch_first=True).double()
    with torch.no_grad():
        module.weight_hh_l0.copy_(without_self(module.weight_hh_l0))
    x, r, *_ = drawn()
    a = F.linear(x, module.weight_ih_l0, module.bias_ih_l0 + module.bias_hh_l0)
    settings = {"w": module.weight_hh_l0, "tau": torch.ones(H).double(), "phi": getattr(torch, phi)}
    y, (last,) = scan(lambda a_t, carry: cell(a_t, carry, **settings), a, (r,))
    wanted, h = module(x, r[None])
    assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert_close(last, h[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("T", [1, 7, 16])
def test_the_folded_form_equals_the_cell_and_its_gradients(T):
    a, r, w, tau = drawn(T)
    found, last = leak_inside_folded(a, r, w=w, tau=tau, phi=F.leaky_relu)
    wanted, (end,) = scan(lambda a_t, carry: leak_inside_cell(a_t, carry, w=w, tau=tau, phi=F.leaky_relu), a, (r,))
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert_close(last, end, rtol=1e-10, atol=1e-12)
    probe = torch.randn_like(found)
    for ours, theirs in zip(torch.autograd.grad(found, (a, w, tau), probe), torch.autograd.grad(wanted, (a, w, tau), probe), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_time_constant_without_end_keeps_everything():
    a, r, w, _ = drawn()
    _, (kept,) = scan(lambda a_t, carry: leak_outside_cell(a_t, carry, w=w, tau=torch.full((H,), 1e14).double(), phi=torch.tanh), a, (r,))
    assert_close(kept, r, rtol=1e-11, atol=1e-11)


def test_a_finer_clock_holds_the_token():
    a, r, w, tau = drawn()
    found, _ = scan(lambda a_t, carry: leak_outside_cell(a_t, carry, w=w, tau=tau, phi=torch.tanh, substeps=3), a, (r,))
    held, _ = scan(lambda a_t, carry: leak_outside_cell(a_t, carry, w=w, tau=3 * tau, phi=torch.tanh), a.repeat_interleave(3, dim=1), (r,))
    assert_close(found, held[:, 2::3], rtol=1e-12, atol=1e-12)


def test_without_input_and_weights_a_unit_fades_by_its_own_time_constant():
    tau = torch.tensor([1.0, 2.0, 10.0], dtype=torch.float64)
    zero = torch.zeros(1, 5, 3, dtype=torch.float64)
    for cell in (leak_inside_cell, leak_outside_cell):
        _, (r,) = scan(
            lambda a_t, carry, cell=cell: cell(a_t, carry, w=torch.zeros(3, 3).double(), tau=tau, phi=torch.relu),
            zero,
            (torch.ones(1, 3).double(),),
        )
        assert_close(r[0], (1 - 1 / tau) ** 5, rtol=1e-12, atol=0)

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.layers.decay_gate import DecayGate


def test_it_is_the_discretisation_of_its_docstring():
    gate, x = DecayGate(4).double(), torch.randn(2, 5, 4, dtype=torch.float64)
    step, log_a = gate(x)
    assert_close(step, F.softplus(x + gate.dt_bias))
    assert_close(log_a, -gate.A_log.exp() * step)
    assert (log_a < 0).all()


def test_steps_are_held_between_their_limits():
    step, log_a = DecayGate(4, min_step=0.5, max_step=0.75)(torch.tensor([[[-9.0, 9.0, -9.0, 9.0]]]))
    assert step.tolist() == [[[0.5, 0.75, 0.5, 0.75]]]
    assert (log_a < 0).all()


def test_the_bias_is_the_inverse_of_the_step():
    torch.manual_seed(0)
    gate = DecayGate(1000, steps=(1e-6, 1e-1), floor=1e-4)
    step, _ = gate(torch.zeros(1, 1, 1000))
    assert step.min().item() >= 0.999e-4
    assert step.max().item() <= 0.1001


def test_under_autocast_it_is_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step, log_a = DecayGate(4)(torch.randn(2, 5, 4).bfloat16())
    assert step.dtype == log_a.dtype == torch.float32

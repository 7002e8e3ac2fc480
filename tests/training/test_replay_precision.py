"""Replay in lower precision: autocast inside and around it, and a scaled loss."""

import pytest
import torch
from cells import B, D, GRUCell, segments
from torch import Tensor, nn
from torch.testing import assert_close

from memseq.training.replay import replay_backward

F32 = torch.float32


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    return found


def bptt(cell, xs, state):
    """The definition: one graph through every segment."""
    total = 0.0
    for x in xs:
        loss, state = cell.loss(x, state)
        total = total + loss
    return total


@pytest.mark.parametrize("outer", [True, False], ids=["inside", "outside"])
def test_bf16_autocast_gives_every_parameter_its_gradient(outer):
    """A weight that was cast in the first pass, without a graph, must not serve the replay: it would get no gradient."""

    class Wide(GRUCell):
        def read(self, x, state):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                hs, (h,) = super().read(x, state)
            return hs.float(), (h.float(),)

        def loss(self, x, state):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().loss(x, state)

    cell, xs = (GRUCell if outer else Wide)(F32), segments(4, F32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        total = bptt(cell, xs, cell.init_state())
    total.backward()
    theirs = gradients(cell)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        with torch.no_grad():
            cell.advance(xs[0], cell.init_state())  # the region's cache is warm, and its casts have no graph
        replay_backward(cell, xs, cell.init_state())
    ours = gradients(cell)
    for name, g in theirs.items():
        assert ours[name] is not None, name
        assert (ours[name] - g).norm() <= 1e-2 * g.norm(), name


def test_products_of_float32_states_stay_float32_in_a_backward_inside_autocast():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(D, D) / D**0.5)

        def loss(self, x, state):
            with torch.autocast("cpu", enabled=False):
                h = (state[0] @ self.weight + x.mean(1)).tanh()
            return h.square().sum(), (h,)

        def advance(self, x, state):
            return self.loss(x, state)[1]

    cell, xs, state = Recurrent(), segments(5, F32), (torch.randn(B, D),)
    bptt(cell, xs, state).backward()
    theirs = gradients(cell)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        replay_backward(cell, xs, state)
    assert torch.equal(gradients(cell)["weight"], theirs["weight"])


def test_a_gradient_scaler_unscales_to_the_same_gradients():
    cell, xs = GRUCell(F32), segments(4, F32)
    replay_backward(cell, xs, cell.init_state())
    theirs = {name: g.clone() for name, g in gradients(cell).items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimiser = torch.optim.SGD(cell.parameters(), lr=0.0)
    scaler.scale(torch.zeros(()))  # the scaler makes its scale on first use
    replayed = replay_backward(cell, xs, cell.init_state(), scale=scaler.get_scale())
    scaler.unscale_(optimiser)
    assert_close(gradients(cell), theirs, rtol=1e-6, atol=1e-6)  # a power of two: exact but for sums below float32's smallest
    assert replayed.loss < 1e4  # reported without the scale

"""Replay in lower precision: autocast inside and around it, and a scaled loss."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from memseq.training.replay import replay_backward

B, L, D = 3, 4, 6


class GRUCell(nn.Module):
    """A GRU over the segment's tokens, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(D, D), nn.Linear(D, D)

    def init_state(self) -> tuple[Tensor]:
        return (torch.zeros(B, D),)

    def read(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        h, hs = state[0], []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            hs.append(h)
        return torch.stack(hs, dim=1), (h,)

    def loss(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        hs, state = self.read(x, state)
        return self.head(hs[:, :-1]).sub(x[:, 1:]).square().sum(), state

    def advance(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor]:
        return self.read(x, state)[1]


def segments(n: int) -> list[Tensor]:
    return [torch.randn(B, L, D) for _ in range(n)]


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

    cell, xs = (GRUCell if outer else Wide)(), segments(4)
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

    cell, xs, state = Recurrent(), segments(5), (torch.randn(B, D),)
    bptt(cell, xs, state).backward()
    theirs = gradients(cell)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        replay_backward(cell, xs, state)
    assert torch.equal(gradients(cell)["weight"], theirs["weight"])


def test_a_gradient_scaler_unscales_to_the_same_gradients():
    cell, xs = GRUCell(), segments(4)
    replay_backward(cell, xs, cell.init_state())
    theirs = {name: g.clone() for name, g in gradients(cell).items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimiser = torch.optim.SGD(cell.parameters(), lr=0.0)
    scaler.scale(torch.zeros(()))  # the scaler makes its scale on first use
    replayed = replay_backward(cell, xs, cell.init_state(), scale=scaler.get_scale())
    scaler.unscale_(optimiser)
    assert_close(gradients(cell), theirs, rtol=1e-6, atol=1e-6)  # a power of two: exact but for sums below float32's smallest
    assert replayed.loss < 1e4  # reported without the scale

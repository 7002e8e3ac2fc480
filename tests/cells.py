"""A small cell for replay to drive: a GRU over a segment's tokens, whose loss foretells the next token."""

import torch
from torch import Tensor, nn

__all__ = ["B", "D", "GRUCell", "L", "segments"]

B, L, D = 3, 4, 6


class GRUCell(nn.Module):
    """A GRU and a linear head; the initial state is learned."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(D, dtype=dtype))
        self.cell, self.head = nn.GRUCell(D, D, dtype=dtype), nn.Linear(D, D, dtype=dtype)

    def init_state(self) -> tuple[Tensor]:
        return (self.start.tanh().expand(B, D),)

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


def segments(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(B, L, D, dtype=dtype) for _ in range(n)]

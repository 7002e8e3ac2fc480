"""States and models to try the verbs of `memseq.state` on."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from memseq.state import (
    map_state,
    tensors,
)

__all__ = ["Config", "Inner", "Model", "Outer", "made", "same"]


class Inner(NamedTuple):
    M: Tensor  # [B, 2, 3]
    seen: Tensor  # [B] int64


class Outer(NamedTuple):
    layers: tuple[Inner, ...]
    flag: Tensor  # [B] bool
    nothing: tuple[()]


def made(rows: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Outer:
    g = torch.Generator().manual_seed(seed)

    def inner() -> Inner:
        return Inner(torch.randn(rows, 2, 3, generator=g, dtype=dtype), torch.randint(9, (rows,), generator=g))

    return Outer((inner(), inner()), torch.rand(rows, generator=g) < 0.5, ())


def same(a: Any, b: Any) -> bool:
    """Equal trees, shapes, dtypes and numbers."""
    pairs = zip(tensors(a), tensors(b), strict=True)
    return pytree.tree_structure(a) == pytree.tree_structure(b) and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


@dataclass(frozen=True)
class Config:
    width: int = 3


class Model:
    """What save and load need of a model: a config, the shape of a state, and whether that is fixed."""

    def __init__(self, dtype: torch.dtype = torch.float32, config: Any = Config(), bounded: bool = True) -> None:
        self.dtype, self.config, self.bounded = dtype, config, bounded

    def init_state(self, rows: int) -> Outer:
        return map_state(torch.zeros_like, made(rows, dtype=self.dtype))

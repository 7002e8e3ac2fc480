"""Bytes of all tensors alive, counted as they come and go: the peak memory of a piece of code, on any device.

Every operator's results are noted while the region is open, those of backward and of kept states among them; a storage
counts until its last owner, Python or autograd, lets go of it. Scratch inside a kernel is not seen.
"""

import weakref
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LiveBytes"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes made inside of it: `now`, and `peak`, the most there were at once.

    >>> import torch
    >>> with LiveBytes() as bytes:
    ...     x = torch.zeros(1000)
    ...     y = (x + 1).sum()
    >>> bytes.now, bytes.peak
    (4004, 8004)
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self._note(t, given)
        return out

    def _note(self, t: Tensor, given: set[int]) -> None:
        storage = t.untyped_storage()
        key = storage._cdata
        if key not in self.alive and key not in given:  # a view of what was there before is not new
            self.alive[key] = storage.nbytes()
            self.now += self.alive[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.alive.pop(key)

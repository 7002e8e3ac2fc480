"""Where arithmetic must not be rounded to what autocast prefers."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["unrounded"]


def unrounded(t: Tensor) -> AbstractContextManager:
    """Without autocast on the device of `t`; on a device that knows none, such as meta, nothing changes."""
    kind = t.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):  # nothing to switch off, which costs a step dearly
        return nullcontext()
    return torch.autocast(kind, enabled=False)

"""Where arithmetic must not be rounded to what autocast prefers."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["unrounded"]


def unrounded(t: Tensor) -> AbstractContextManager:
    """Without autocast on the device of `t`; on a device that knows none, such as meta, nothing changes."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()

"""What a pass over a segment reads and changes besides its state: random generators and module buffers.

A replayed segment must see them as they were when it was first read, and the world outside must see them as after one
plain forward over the segments. So they are saved with every kept state and put back before every replay: the generators
of torch on the CPU and on the cell's devices, Python's `random`, NumPy's global generator, and every buffer of the cell.
What has not changed since the last save is shared, not copied.
"""

import random
import sys
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memseq.state import State, tensors

__all__ = ["Surroundings"]


@dataclass
class BufferCopy:
    tensor: Tensor  # the object that was registered
    version: int  # its version when it held `copy`
    copy: Tensor


@dataclass(frozen=True)
class Saved:
    generators: tuple[Any, ...]
    modules: tuple[dict[str, BufferCopy], ...]  # for every module with buffers


class Surroundings:
    """The generators and buffers that `cell`, reading after `state`, may draw from or write to."""

    def __init__(self, cell: Any, state: State) -> None:
        module = cell if isinstance(cell, nn.Module) else nn.Module()
        self.devices = sorted({t.device for t in (*module.parameters(), *tensors(state)) if t.device.type not in ("cpu", "meta")}, key=str)
        self.owners = [(prefix, owner) for prefix, owner in module.named_modules() if owner._buffers]
        self.changed: set[str] = set()
        self.last: Saved | None = None

    def save(self) -> Saved:
        """A copy of everything as it is now."""
        last = self.last or Saved((None,) * (3 + len(self.devices)), ({},) * len(self.owners))
        generators = tuple(old if _same(old, new) else new for old, new in zip(last.generators, self._generators(), strict=True))
        modules = tuple(self._copy(prefix, owner, old) for (prefix, owner), old in zip(self.owners, last.modules, strict=True))
        self.last = Saved(generators, modules)
        return self.last

    def restore(self, saved: Saved) -> None:
        """Everything as it was when `saved` was made."""
        cpu, python, arrays, *devices = saved.generators
        torch.set_rng_state(cpu)
        random.setstate(python)
        if arrays is not None:
            sys.modules["numpy"].random.set_state(arrays)
        for device, generator in zip(self.devices, devices, strict=True):
            torch.get_device_module(device).set_rng_state(generator, device)
        for (prefix, owner), held in zip(self.owners, saved.modules, strict=True):
            if _untouched(owner, held):
                continue
            self._changed(prefix, owner)
            for name, buffer in held.items():
                with torch.no_grad():
                    buffer.tensor.copy_(buffer.copy)
                buffer.version = buffer.tensor._version
                owner._buffers[name] = buffer.tensor
        self.last = saved

    def warn(self) -> None:
        """Name the buffers that a replay had to put back."""
        if self.changed:
            warnings.warn(
                f"reading a segment writes to the buffers {', '.join(sorted(self.changed))}; the replay put them back, so that each segment"
                " updated them once. What should be remembered from one segment to the next belongs into the state",
                stacklevel=3,
            )

    def _generators(self) -> tuple[Any, ...]:
        numpy = sys.modules.get("numpy")  # where nobody imported NumPy nobody draws from it
        arrays = numpy.random.get_state() if numpy else None
        return (torch.get_rng_state(), random.getstate(), arrays, *(torch.get_device_module(d).get_rng_state(d) for d in self.devices))

    def _copy(self, prefix: str, owner: nn.Module, old: dict[str, BufferCopy]) -> dict[str, BufferCopy]:
        if old and _untouched(owner, old):
            return old
        if old:
            self._changed(prefix, owner)
        buffers = ((name, b) for name, b in owner._buffers.items() if b is not None)
        return {name: BufferCopy(b, b._version, b.detach().clone()) for name, b in buffers}

    def _changed(self, prefix: str, owner: nn.Module) -> None:
        self.changed |= {f"{prefix}.{name}".lstrip(".") for name, b in owner._buffers.items() if b is not None}


def _untouched(owner: nn.Module, held: dict[str, BufferCopy]) -> bool:
    """Whether no buffer of a module was written to. All are asked together: the kernel of a batch norm writes its running
    statistics without marking them, but the counter beside them is marked."""
    return all(owner._buffers[name] is b.tensor and b.tensor._version == b.version for name, b in held.items())


def _same(old: Any, new: Any) -> bool:
    """Whether two states of a generator are equal: a torch one (bytes), a Python one or a NumPy one (tuples)."""
    if old is None or new is None:
        return old is new
    if isinstance(new, Tensor):
        return torch.equal(old, new)
    return all((a == b).all() if hasattr(a, "all") else a == b for a, b in zip(old, new, strict=True))

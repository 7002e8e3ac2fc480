"""Gradients of a replayed window are averaged over ranks once, with the backward of its first segment in time.

Every segment is a backward of its own, so an engine that averages at each backward would do so S times, or fail where a
segment leaves a parameter unused. `sync(is_last)` is entered around each replayed segment; `is_last` marks the one
segment, the last to be replayed, in which the engine may talk. The number of segments may then differ between ranks.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from memseq.errors import ConfigError
from memseq.state import State

__all__ = ["Sync", "ddp_sync", "entries", "fsdp2_sync", "sync_of"]

# What it yields for the last segment, if anything, is a list of parameters: its backward then reaches all of them and the
# whole of its end state, if only with zeros, so that every rank has the same gradients to wait for.
Sync = Callable[[bool], AbstractContextManager[Any]]


def entries(cell: Any) -> tuple[Callable[[Any, State], tuple[Tensor, State]], Callable[[Any, State], State]]:
    """How to call a cell's loss and its advance: DistributedDataParallel is armed by its own forward, and only by it."""
    if isinstance(cell, DistributedDataParallel):
        return cell, cell.module.advance
    return cell.loss, cell.advance


def sync_of(cell: Any) -> Sync:
    """The `sync` that fits the engine around `cell`; nothing to do where there is none."""
    if isinstance(cell, DistributedDataParallel):
        return ddp_sync(cell)
    if isinstance(cell, nn.Module) and torch.distributed.is_available() and torch.distributed.is_initialized():
        from torch.distributed.fsdp import FSDPModule

        if any(isinstance(m, FSDPModule) for m in cell.modules()):
            return fsdp2_sync(cell)
    return lambda is_last: nullcontext()


def ddp_sync(module: DistributedDataParallel) -> Sync:
    """For a cell inside DistributedDataParallel: `no_sync` for all segments but the last to be replayed.

    That one must reach every parameter, or those it leaves unused (a writer, where a rank has one segment; an expert that
    was not chosen) would silently keep their own rank's gradients: they are reached with zeros. With
    `find_unused_parameters=True` the engine sees to it itself.
    """
    if module.static_graph:
        raise ConfigError("replay cannot run with static_graph=True: a window is many graphs; build DistributedDataParallel without it")
    if module.device_ids:
        raise ConfigError(
            f"DistributedDataParallel(device_ids={module.device_ids}) moves a state's host leaves to the device; move the module there"
            " first and build DistributedDataParallel(module) without device_ids"
        )
    parameters = [] if module.find_unused_parameters else [p for p in module.parameters() if p.requires_grad]
    return lambda is_last: nullcontext(parameters) if is_last else module.no_sync()


def fsdp2_sync(module: nn.Module) -> Sync:
    """For a cell under `fully_shard`: weights stay gathered inside a window, gradients are reduced with its last backward.

    Keeping them gathered makes each rank gather once per window, however many segments it has; the price is the memory of
    the whole weights and of their whole gradients.
    """
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    sharded = [m for m in module.modules() if isinstance(m, FSDPModule)]
    for m in sharded:
        m.set_reshard_after_forward(False, recurse=False)
        if hasattr(m, "set_reduce_scatter_unused_params"):  # torch 2.13; before, a rank's unused parameter is an error of torch
            m.set_reduce_scatter_unused_params(True, recurse=False)
        for name in ("loss", "advance", "step", "init_state"):  # entries besides `forward` must gather weights as well
            if callable(getattr(m, name, None)) and name not in vars(m):  # once is enough
                register_fsdp_forward_method(m, name)

    @contextmanager
    def sync(is_last: bool) -> Generator[list[Tensor] | None, None, None]:
        for m in sharded:
            m.set_requires_gradient_sync(is_last, recurse=False)
            m.set_reshard_after_backward(is_last, recurse=False)
            m.set_is_last_backward(is_last)
        yield [] if is_last else None

    return sync

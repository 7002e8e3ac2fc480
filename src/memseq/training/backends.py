"""How a window of segments gets its gradients: memory replay, a chain of checkpoints, or plain back-propagation.

All three give the same gradients. Replay holds one segment's activations and is the default; the chain is one forward and
one backward, which any engine can drive; plain back-propagation holds every activation of the window and is the oracle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from memseq.state import State, detach
from memseq.training import distributed
from memseq.training.cell import StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import checkpointed_loss, no_autocast, replay_backward
from memseq.training.schedules import KeepAll, Schedule
from memseq.training.sync import sync_of

__all__ = ["Backend", "Backpropagation", "CheckpointChain", "Replay"]

Run = Callable[[Sequence[Segment], State, float], tuple[Tensor, State]]


@runtime_checkable
class Backend(Protocol):
    """Says which module an engine wraps, and how a window runs through it."""

    def prepare(self, cell: StreamCell) -> nn.Module:
        """The module whose forward DistributedDataParallel or `fully_shard` sees."""
        ...

    def bind(self, module: nn.Module) -> Run:
        """(segments, state, scale) -> (sum of losses, next state), both without a graph; adds `scale` times the gradients."""
        ...


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Memory replay back-propagation (`training/replay.py`)."""

    schedule: Schedule = field(default_factory=KeepAll)

    def prepare(self, cell: StreamCell) -> nn.Module:
        return cell

    def bind(self, module: nn.Module) -> Run:
        sync = sync_of(module)  # once: it hooks into the module
        agree = partial(distributed.all_well, device=next(module.parameters()).device) if distributed.world() > 1 else None

        def run(segments: Sequence[Segment], state: State, scale: float) -> tuple[Tensor, State]:
            replayed = replay_backward(module, segments, state, scale=scale, schedule=self.schedule, sync=sync, agree=agree)
            return replayed.loss, replayed.state

        return run


class _Window(nn.Module):
    """A whole window in one forward. The final state leaves without its graph: no engine may wait for its gradient."""

    def __init__(self, cell: StreamCell) -> None:
        super().__init__()
        self.cell = cell

    def loss(self, segment: Segment, state: State) -> tuple[Tensor, State]:
        return self.cell.loss(segment, state)


class _CheckpointedWindow(_Window):
    def forward(self, segments: Sequence[Segment], state: State) -> tuple[Tensor, State]:
        loss, state = checkpointed_loss(self.cell, segments, state)
        return loss, detach(state)


class _PlainWindow(_Window):
    def forward(self, segments: Sequence[Segment], state: State) -> tuple[Any, State]:
        total: Any = 0.0
        for segment in segments:
            loss, state = self.cell.loss(segment, state)
            total = total + loss
        return total, detach(state)


def _run_whole(module: nn.Module) -> Run:
    if distributed.is_sharded(module):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(module, "loss")  # evaluation reads segment by segment

    def run(segments: Sequence[Segment], state: State, scale: float) -> tuple[Tensor, State]:
        loss, end = module(segments, state)
        with no_autocast(loss.device):
            (loss * scale).backward()
        return loss.detach(), end

    return run


@dataclass(frozen=True, kw_only=True)
class CheckpointChain:
    """A chain of checkpoints, one per segment, in one forward."""

    def prepare(self, cell: StreamCell) -> nn.Module:
        return _CheckpointedWindow(cell)

    def bind(self, module: nn.Module) -> Run:
        return _run_whole(module)


@dataclass(frozen=True, kw_only=True)
class Backpropagation:
    """Full back-propagation through the window, all activations alive."""

    def prepare(self, cell: StreamCell) -> nn.Module:
        return _PlainWindow(cell)

    def bind(self, module: nn.Module) -> Run:
        return _run_whole(module)

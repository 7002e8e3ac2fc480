"""What a replay drives: something that reads one segment after a state, with or without the loss.

    L_t, s_{t+1} = cell.loss(segment_t, s_t)
    s_{t+1}      = cell.advance(segment_t, s_t)         the critical path: no head, no loss

Both must draw the random numbers of the state's path first and in the same order, since `advance` leaves out the rest.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from memseq.state import State, choose
from memseq.training.lanes import Segment

__all__ = ["Cell", "Segments", "StreamCell"]


@runtime_checkable
class Cell(Protocol):
    """Reads segments of any kind; a state is a pytree of tensors."""

    def loss(self, segment: Any, state: State) -> tuple[Tensor, State]:
        """The sum of this segment's losses (a scalar) and the state after it."""
        ...

    def advance(self, segment: Any, state: State) -> State:
        """The state after the segment."""
        ...


@runtime_checkable
class Segments(Protocol):
    """A window: a list of segments, or anything that gives the same segment each time it is asked for it."""

    def __len__(self) -> int: ...
    def __getitem__(self, t: int, /) -> Any: ...


class StreamCell(nn.Module):
    """A language model that reads lanes of documents: rows that begin a document begin with a fresh state.

    The reset lies inside the cell, so that replay sees it and a learned initial state gets its gradient. `forward` is
    `loss`, so that DistributedDataParallel and `fully_shard` can wrap the cell.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, segment: Segment, state: State) -> tuple[Tensor, State]:
        loss, _, state = self.model.loss(segment.tokens, segment.targets, self.begin(segment, state))
        return loss, state

    def advance(self, segment: Segment, state: State) -> State:
        return self.model.advance(segment.tokens, self.begin(segment, state))

    def forward(self, segment: Segment, state: State) -> tuple[Tensor, State]:
        return self.loss(segment, state)

    def begin(self, segment: Segment, state: State) -> State:
        """`state` with a fresh row wherever a document begins."""
        if not segment.reset.any():
            return state
        fresh = self.model.init_state(len(segment.reset))
        return fresh if segment.reset.all() else choose(segment.reset, fresh, state)

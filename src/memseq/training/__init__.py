"""Training on streams: documents on lanes, memory replay, and the loop around them."""

from memseq.training.cell import Cell, StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import Replayed, checkpointed_loss, replay_backward
from memseq.training.schedules import KeepAll, Offload, Revolve, Sqrt

__all__ = [
    "Cell",
    "KeepAll",
    "Offload",
    "Replayed",
    "Revolve",
    "Segment",
    "Sqrt",
    "StreamCell",
    "checkpointed_loss",
    "replay_backward",
]

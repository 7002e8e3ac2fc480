"""Training on streams: documents on lanes, memory replay, and the loop around them."""

from memseq.training.cell import Cell, StreamCell
from memseq.training.lanes import Segment
from memseq.training.replay import CheckpointedWindow, Replayed, checkpointed_loss, replay_backward
from memseq.training.scan import replay_scan
from memseq.training.schedules import KeepAll, Offload, Revolve, Sqrt
from memseq.training.sync import ddp_sync, fsdp2_sync

__all__ = [
    "Cell",
    "CheckpointedWindow",
    "KeepAll",
    "Offload",
    "Replayed",
    "Revolve",
    "Segment",
    "Sqrt",
    "StreamCell",
    "checkpointed_loss",
    "ddp_sync",
    "fsdp2_sync",
    "replay_backward",
    "replay_scan",
]

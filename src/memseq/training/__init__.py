"""Training on streams: documents on lanes, memory replay, and the loop around them."""

from memseq.training.backends import Backpropagation, CheckpointChain, Replay
from memseq.training.cell import Cell, StreamCell
from memseq.training.curriculum import Curriculum
from memseq.training.distributed import FullyShard, OneProcess, ReplicateData, process_group
from memseq.training.lanes import EachOnce, Lanes, Segment, StreamLanes, TokenDocuments
from memseq.training.loop import Run, TrainingConfig, train
from memseq.training.optim import AdamWConfig, MuonConfig, WarmupCosine
from memseq.training.replay import CheckpointedWindow, Replayed, checkpointed_loss, replay_backward
from memseq.training.scan import replay_scan
from memseq.training.schedules import KeepAll, Offload, Revolve, Sqrt
from memseq.training.scores import Scores, evaluate
from memseq.training.sync import ddp_sync, fsdp2_sync

__all__ = [
    "AdamWConfig",
    "Backpropagation",
    "Cell",
    "CheckpointChain",
    "CheckpointedWindow",
    "Curriculum",
    "EachOnce",
    "FullyShard",
    "KeepAll",
    "Lanes",
    "MuonConfig",
    "Offload",
    "OneProcess",
    "Replay",
    "Replayed",
    "ReplicateData",
    "Revolve",
    "Run",
    "Scores",
    "Segment",
    "Sqrt",
    "StreamCell",
    "StreamLanes",
    "TokenDocuments",
    "TrainingConfig",
    "WarmupCosine",
    "checkpointed_loss",
    "ddp_sync",
    "evaluate",
    "fsdp2_sync",
    "process_group",
    "replay_backward",
    "replay_scan",
    "train",
]

"""Processes that wait for each other's gradients stop together: where one cannot use its window, none is left waiting."""

import os
import socket
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from memseq.errors import TrainingError
from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.memformer import MemformerLM, MemformerLMConfig
from memseq.state import map_state
from memseq.training.backends import Backpropagation
from memseq.training.distributed import FullyShard, ReplicateData, all_well
from memseq.training.lanes import TokenDocuments
from memseq.training.loop import TrainingConfig, train

TEXT = TokenDocuments([np.random.default_rng(n).integers(0, 32, 600) for n in range(8)])
CONFIG = TrainingConfig(steps=2, batch_size=2, segment_length=8, horizon=3, dtype="float32", log_every=1)
MODEL = MemformerLMConfig(
    vocab_size=32,
    d_model=8,
    layers=(SegmentAttentionConfig(d_model=8, n_heads=2, segment_length=8),),
    slots=SlotsConfig(d_model=8, n_heads=2, n_slots=3, segment_length=8),
)


class Spoilt(MemformerLM):
    """A model whose state, or whose loss of a document's first segment alone, is not finite in process 1."""

    what = ""

    def features(self, tokens, state):
        h, after = super().features(tokens, state)
        if os.environ["RANK"] == "1" and self.what == "state":
            after = map_state(lambda t: t * torch.inf if t.is_floating_point() else t, after)
        if (
            os.environ["RANK"] == "1"
            and self.what == "loss"
            and torch.equal(state.slots[0].slots, self.init_state(len(tokens)).slots[0].slots)
        ):
            h = h * torch.nan
        return h, after


JOBS = [
    (what, name, strategy, config)
    for what in ("state", "loss")
    for name, strategy, config in (
        ("ddp", ReplicateData(), CONFIG),
        ("fsdp", FullyShard(), CONFIG),
        ("ddp, one graph", ReplicateData(), replace(CONFIG, backend=Backpropagation())),
    )
]


def process(rank, port, folder, path):
    sys.path[:] = path
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))  # who is left waiting is an error, not a hang
    for what, name, strategy, config in JOBS:
        torch.manual_seed(0)
        net = Spoilt(MODEL)
        net.what = what
        try:
            train(net, config.lanes(TEXT), config, Path(folder) / f"{what} {name}", strategy=strategy, quiet=True)
            said = "it trained"
        except TrainingError as error:
            said = str(error)
        (Path(folder) / f"{what} {name} {rank}.txt").write_text(said)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(process, args=(port, str(folder), [p for p in sys.path if p]), nprocs=2)
    return folder


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, name, _, _ in JOBS], ids=" ".join)
def test_both_processes_stop_and_each_says_why(folder, what, name):
    well, ill = ((folder / f"{what} {name} {rank}.txt").read_text() for rank in (0, 1))
    for said in (well, ill):
        assert said.startswith("training stopped at step 1: ")
        assert "no checkpoint was written yet" in said
    if "graph" in name:
        assert "the loss is nan" in ill
        assert "the loss is nan" in well
    elif what == "state":
        assert "left a state or a loss that is not finite; no gradient was touched" in ill
        assert "another process's window left a state or a loss that is not finite" in well
    else:
        assert "the loss of segment 0 of 3 is nan" in ill
        assert "another process could not use its window" in well


def test_one_process_agrees_with_itself():
    assert all_well(True)
    assert not all_well(False)

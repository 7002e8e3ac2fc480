"""Two processes take the steps of one process with twice the lanes: DistributedDataParallel and FSDP2, every back end."""

import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from memseq.errors import ConfigError
from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.pretrained import load_pretrained
from memseq.training.backends import CheckpointChain
from memseq.training.distributed import FullyShard, OneProcess, ReplicateData, all_sum
from memseq.training.lanes import EachOnce, TokenDocuments
from memseq.training.loop import TrainingConfig, train
from memseq.training.optim import AdamWConfig, WarmupCosine
from memseq.training.scores import evaluate

# some documents are so short that processes score different numbers of tokens in a window
LENGTHS = (40, 7, 90, 2, 33, 61, 15, 4)
TEXT = TokenDocuments([np.random.default_rng(n).integers(0, 32, n) for n in LENGTHS])
CONFIG = TrainingConfig(
    steps=2,
    batch_size=2,
    segment_length=8,
    horizon=3,
    optimizer=AdamWConfig(lr=1e-2),
    rate=WarmupCosine(warmup=0),
    dtype="float32",
    log_every=1,
)


def model():
    torch.manual_seed(0)
    layer = SegmentAttentionConfig(d_model=8, n_heads=2, segment_length=8)
    slots = SlotsConfig(d_model=8, n_heads=2, n_slots=3, segment_length=8)
    return MemformerLMConfig(vocab_size=32, d_model=8, layers=(layer,), slots=slots).build().double()


def process(rank, port, jobs, folder, path):
    sys.path[:] = path
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from memseq.training.distributed import process_group

    with process_group():
        for name, strategy, config, resume in jobs:
            net = model()
            valid = EachOnce(TEXT, batch_size=2, segment_length=8, rank=rank, world=2)
            run = train(net, config.lanes(TEXT), config, Path(folder) / name, strategy=strategy, valid=valid, resume=resume, quiet=True)
            if rank == 0:
                scores = [run.valid.nats, float(run.valid.tokens), float(run.tokens), run.loss]
                torch.save(torch.tensor(scores, dtype=torch.float64), Path(folder) / name / "scores.pt")


JOBS = [
    ("ddp", ReplicateData(), CONFIG, False),
    ("fsdp", FullyShard(), CONFIG, False),
    ("ddp-chain", ReplicateData(), replace(CONFIG, backend=CheckpointChain()), False),
    ("fsdp-chain", FullyShard(), replace(CONFIG, backend=CheckpointChain()), False),
    # one segment a window: the memory's writer is unused in the one segment that is synced
    ("ddp-unused", ReplicateData(), replace(CONFIG, horizon=1), False),
    ("fsdp-unused", FullyShard(), replace(CONFIG, horizon=1), False),
    # stopped after one step and resumed
    ("ddp-resumed", ReplicateData(), replace(CONFIG, steps=1), False),
    ("ddp-resumed", ReplicateData(), CONFIG, True),
    ("fsdp-resumed", FullyShard(), replace(CONFIG, steps=1), False),
    ("fsdp-resumed", FullyShard(), CONFIG, True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All jobs in one pair of processes, since a process takes seconds to start."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.spawn(process, args=(port, JOBS, str(folder), [p for p in sys.path if p]), nprocs=2)
    return folder


def one_process(out, horizon=3):
    """The same with all four lanes in one process."""
    config = replace(CONFIG, batch_size=4, horizon=horizon)
    net = model()
    run = train(net, config.lanes(TEXT), config, out, valid=EachOnce(TEXT, batch_size=2, segment_length=8), quiet=True)
    return net, run


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-chain", "fsdp-chain", "ddp-unused", "fsdp-unused"])
def test_two_processes_equal_one_with_twice_the_lanes(folder, tmp_path, name):
    net, run = one_process(tmp_path, horizon=1 if "unused" in name else 3)
    two = load_pretrained(folder / name)
    start = model()
    for key, p in net.named_parameters():
        torch.testing.assert_close(two.get_parameter(key), p, rtol=1e-9, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")
    assert any(not torch.equal(p, start.get_parameter(key)) for key, p in net.named_parameters())
    nats, valid_tokens, tokens, loss = torch.load(folder / name / "scores.pt").tolist()
    assert (valid_tokens, tokens) == (run.valid.tokens, run.tokens)
    assert nats == pytest.approx(run.valid.nats, rel=1e-9)
    assert loss == pytest.approx(run.loss, rel=1e-9)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(folder, name):
    whole, resumed = load_pretrained(folder / name), load_pretrained(folder / f"{name}-resumed")
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


def test_fsdp_checkpoints_are_sharded(folder):
    shards = folder / "fsdp" / "checkpoints" / "step-00000002" / "shards"
    assert sorted(p.name for p in shards.iterdir()) == [".metadata", "__0_0.distcp", "__1_0.distcp"]


def test_the_deployed_model_scores_what_the_sharded_one_did(folder):
    nats = float(torch.load(folder / "fsdp" / "scores.pt")[0])
    assert evaluate(load_pretrained(folder / "fsdp"), EachOnce(TEXT, batch_size=3, segment_length=8)).nats == pytest.approx(nats, rel=1e-6)


def test_an_engine_needs_processes_and_processes_need_an_engine(tmp_path, monkeypatch):
    for strategy in (ReplicateData(), FullyShard()):
        with pytest.raises(ConfigError, match=r"shares work between processes, and there is one; start them with torchrun"):
            train(model(), CONFIG.lanes(TEXT), CONFIG, tmp_path, strategy=strategy, quiet=True)
    monkeypatch.setattr("memseq.training.distributed.world", lambda: 2)
    with pytest.raises(ConfigError, match=r"2 processes train together and none would share gradients"):
        OneProcess().wrap(model())


def test_one_process_sums_its_own():
    assert not dist.is_initialized()
    assert all_sum([1, 2.5]) == [1.0, 2.5]

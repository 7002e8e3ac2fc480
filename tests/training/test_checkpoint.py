"""A checkpoint is whole or it is not there, and gives back what was saved bit for bit."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memseq.contract import empty
from memseq.errors import CheckpointError
from memseq.training import checkpoint
from memseq.training.checkpoint import Checkpoints, load_rank, load_weights, save_rank, save_weights


class State(NamedTuple):
    memory: Tensor
    position: Tensor
    buffer: Tensor


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def write(checkpoints, step, content="x"):
    with checkpoints.writing(step) as folder:
        (folder / "file").write_text(content)


def test_the_last_ones_are_kept(tmp_path):
    checkpoints = Checkpoints(folder=tmp_path / "checkpoints", keep_last=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        write(checkpoints, step)
    assert [p.name for p in checkpoints.all()] == ["step-00000010", "step-00000015"]
    assert names(tmp_path / "checkpoints") == ["step-00000010", "step-00000015"]


def test_the_same_step_twice(tmp_path):
    checkpoints = Checkpoints(folder=tmp_path)
    write(checkpoints, 5, "a")
    write(checkpoints, 5, "b")
    assert (checkpoints.latest() / "file").read_text() == "b"


@pytest.mark.parametrize("moment", ["while files are written", "while they are flushed", "before the rename"])
def test_a_disk_that_refuses_leaves_the_old_checkpoint(tmp_path, monkeypatch, moment):
    checkpoints = Checkpoints(folder=tmp_path)
    write(checkpoints, 5, "whole")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if moment == "while they are flushed":
        monkeypatch.setattr(checkpoint, "_flush", refuse)
    elif moment == "before the rename":
        monkeypatch.setattr(checkpoint.os, "replace", refuse)

    def fill():
        with checkpoints.writing(10) as folder:
            (folder / "file").write_text("half")
            if moment == "while files are written":
                refuse()

    with pytest.raises(
        CheckpointError, match=r"of step 10 could not be written.*No space left.*step-00000005 is whole; free some"
    ) as caught:
        fill()
    assert isinstance(caught.value.__cause__, OSError)
    assert [p.name for p in checkpoints.all()] == ["step-00000005"]
    assert names(tmp_path) == ["step-00000005"]
    assert (checkpoints.latest() / "file").read_text() == "whole"


def test_a_file_size_limit_is_a_full_disk(tmp_path):
    """The real thing: the system refuses to write more than 100 kB into a file."""
    checkpoints = Checkpoints(folder=tmp_path)
    write(checkpoints, 5)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match="step-00000005 is whole"), checkpoints.writing(10) as folder:
            save_weights(folder / "model.safetensors", nn.Linear(1000, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize("moment", ["write", "rename", "delete"])
def test_a_process_that_is_killed_leaves_only_whole_checkpoints(tmp_path, moment):
    script = f"""
import os, shutil, signal, sys
from pathlib import Path
from memseq.training import checkpoint
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
checkpoints = checkpoint.Checkpoints(folder=Path(sys.argv[1]), keep_last=1)
for step in (5, 10):
    with checkpoints.writing(step) as folder:
        (folder / "file").write_text("whole")
        if step == 10:
            if {moment!r} == "write": die()
            if {moment!r} == "rename": checkpoint.os.replace = die
            if {moment!r} == "delete": checkpoint.shutil.rmtree = die
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = Checkpoints(folder=tmp_path, keep_last=1)
    assert checkpoints.latest().name == ("step-00000010" if moment == "delete" else "step-00000005")
    assert all((p / "file").read_text() == "whole" for p in checkpoints.all())
    write(checkpoints, 15)  # and the next one clears what was left
    assert names(tmp_path) == ["step-00000015"]


def test_states_generators_and_positions_come_back(tmp_path, monkeypatch):
    state = State(torch.randn(3, 4), torch.tensor([1, 2, 3]), empty(torch.zeros(1), 3, 0, 4))
    state = state._replace(buffer=empty(torch.zeros(1), 3, 1000))
    position = {"lanes": [{"document": 3, "start": 0, "offset": 17}]}
    save_rank(tmp_path, 0, state, position)
    python, drawn = random.getstate(), (torch.rand(3), np.random.rand())  # noqa: NPY002
    assert (tmp_path / "rank-0.safetensors").stat().st_size < 8_000  # an empty buffer is one number on disk too
    put_back = []
    monkeypatch.setattr(random, "setstate", put_back.append)  # the shape checks of these tests draw from this generator themselves
    loaded, again = load_rank(tmp_path, 0, state)
    assert again == position
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(loaded, state, strict=True))
    assert loaded.buffer.untyped_storage().nbytes() == 4
    assert put_back == [python]
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.random.rand() == drawn[1]  # noqa: NPY002


def test_weights_come_back_shared_ones_once(tmp_path):
    def model():
        net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5))
        net[1].weight = net[0].weight
        return net

    old, new = model(), model()
    old[2].running_mean.fill_(2.0)
    save_weights(tmp_path / "w", old)
    load_weights(tmp_path / "w", new)
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(), new.state_dict().values(), strict=True))
    assert new[1].weight is new[0].weight


def test_broken_and_foreign_files(tmp_path):
    save_weights(tmp_path / "w", nn.Linear(3, 3))
    with pytest.raises(CheckpointError, match="holds the weights of another model: weight differ"):
        load_weights(tmp_path / "w", nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match=r"0.bias, 0.weight, bias, weight differ"):
        load_weights(tmp_path / "w", nn.Sequential(nn.Linear(3, 3)))
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cannot be read .* it may be truncated"):
        load_weights(tmp_path / "w", nn.Linear(3, 3))
    (tmp_path / "j").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_json(tmp_path / "j")

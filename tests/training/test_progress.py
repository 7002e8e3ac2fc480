"""The log of a run: what a resumed run keeps of it, wherever the one before was killed."""

import json
import os
import signal
import subprocess
import sys

from memseq.training.progress import MetricsLog


def steps(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def written(out, *these, resumed_at=0):
    log = MetricsLog(out, resumed_at=resumed_at)
    for step in these:
        log.add({"step": step, "loss": 1.0})
    log.close()


def test_a_resumed_run_drops_what_its_checkpoint_has_not_seen(tmp_path):
    written(tmp_path, 1, 2, 3, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    written(tmp_path, 3, resumed_at=2)
    assert steps(tmp_path) == [1, 2, 3]
    written(tmp_path, 1)  # nothing was saved: a run of its own
    assert steps(tmp_path) == [1]


def test_a_run_that_is_killed_while_it_resumes_has_lost_no_line(tmp_path):
    written(tmp_path, 1, 2, 3, 4)
    script = """
import os, signal, sys
from pathlib import Path
from memseq.training import progress
progress.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
progress.MetricsLog(Path(sys.argv[1]), resumed_at=2)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps(tmp_path) == [1, 2, 3, 4]
    written(tmp_path, 3, resumed_at=2)
    assert steps(tmp_path) == [1, 2, 3]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []

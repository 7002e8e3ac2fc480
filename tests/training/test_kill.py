"""A run that is killed, again and again and anywhere, comes to the weights it would have come to."""

import multiprocessing
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from memseq.layers.slots import SlotsConfig
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.memformer import MemformerLMConfig
from memseq.pretrained import load_pretrained
from memseq.training.lanes import TokenDocuments
from memseq.training.loop import TrainingConfig, train


def work(out: str, steps: int, begun) -> None:
    """One life of the run: from the last checkpoint, or from the start, to the end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = SegmentAttentionConfig(d_model=16, n_heads=2, segment_length=8)
    slots = SlotsConfig(d_model=16, n_heads=2, n_slots=4, segment_length=8)
    model = MemformerLMConfig(vocab_size=256, d_model=16, layers=(layer,), slots=slots, dropout=0.1).build()
    text = TokenDocuments([np.random.default_rng(n).integers(0, 256, 50 + 37 * n) for n in range(9)])
    config = TrainingConfig(steps=steps, batch_size=2, segment_length=8, horizon=3, dtype="float32", save_every=2, log_every=1)
    begun.set()
    train(model, config.lanes(text), config, out, resume=True, quiet=True)


def last_step(out: Path) -> int:
    log = out / "metrics.jsonl"
    return max([0, *(int(step) for step in re.findall(r'^{"step": (\d+),', log.read_text(), re.MULTILINE))]) if log.exists() else 0


def losses(out: Path) -> list[str]:
    return [line.partition('"tokens_per_second"')[0] for line in (out / "metrics.jsonl").read_text().splitlines()]


def killed(kills: int, steps: int, tmp_path: Path) -> list[int]:
    """Run to the end, killed `kills` times on the way; the number of the newest checkpoint at each death."""
    server = multiprocessing.get_context("forkserver")  # a clean process with torch loaded, and from it one a life, quickly
    server.set_forkserver_preload(["torch", "memseq.training.loop", "memseq.models.memformer", "torch.utils.tensorboard", "torch._dynamo"])

    def life(out: Path, lived: int | None, seconds: float = 0.0) -> int | None:
        """Killed `seconds` after the log has grown by `lived` steps; None: left alone."""
        begun = server.Event()
        process = server.Process(target=work, args=(str(out), steps, begun))
        process.start()
        assert begun.wait(120)
        first = last_step(out)
        while lived is not None and process.is_alive():
            if lived == 0 or last_step(out) >= first + lived:
                time.sleep(seconds)
                process.kill()
                break
            time.sleep(0.002)
        process.join(300)
        return process.exitcode

    assert life(tmp_path / "whole", None) == 0
    rng, seen = random.Random(7), []
    for _ in range(kills):
        assert life(tmp_path / "killed", rng.randrange(6), rng.uniform(0.0, 0.1)) == -9
        seen.append(max([0, *(int(p.name[5:]) for p in (tmp_path / "killed" / "checkpoints").glob("step-*"))]))
    assert life(tmp_path / "killed", None) == 0
    return seen


def check(tmp_path: Path, steps: int) -> None:
    whole, again = load_pretrained(tmp_path / "whole"), load_pretrained(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert len(losses(tmp_path / "whole")) == steps
    names = sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir())
    assert names == [f"step-{steps - 2:08d}", f"step-{steps:08d}"]  # and nothing half-written is left


def test_killed_three_times(tmp_path):
    killed(3, 24, tmp_path)
    check(tmp_path, 24)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    deaths = killed(20, 150, tmp_path)
    assert len(set(deaths)) >= 8  # they died at many places
    check(tmp_path, 150)

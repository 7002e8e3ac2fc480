"""A run stops with a reason: a signal, its time, numbers that are not finite, a full disk, what contradicts."""

import signal
import time
from dataclasses import replace

import pytest
import torch
from runs import CONFIG, TEXT, lines, model, run

from memseq.errors import CheckpointError, ConfigError, TrainingError
from memseq.pretrained import load_pretrained
from memseq.training import checkpoint
from memseq.training.loop import train
from memseq.training.optim import MuonConfig, WarmupCosine


class Signalled:
    """Lanes that stop the process while a step reads them."""

    def __init__(self, lanes, number, after):
        self.lanes, self.state_dict, self.load_state_dict = lanes, lanes.state_dict, lanes.load_state_dict
        self.number, self.left = number, after

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return next(self.lanes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(tmp_path, number):
    config = replace(CONFIG, steps=100_000, save_every=100_000)
    before = signal.getsignal(number)
    stopped = Signalled(config.lanes(TEXT), number, after=2 * config.horizon + 1)  # in the third step
    summary = train(model(), stopped, config, tmp_path, quiet=True)
    assert summary.stopped_by == number.name
    assert summary.exit_code == 128 + number
    assert summary.steps == 3
    assert (tmp_path / f"checkpoints/step-{summary.steps:08d}").is_dir()
    assert signal.getsignal(number) is before
    again = replace(config, steps=summary.steps + 2)
    _, summary = run(tmp_path, again, resume=True)
    assert summary.steps == again.steps
    assert summary.stopped_by == "steps"


def test_a_budget_of_minutes(tmp_path):
    _, summary = run(tmp_path, replace(CONFIG, steps=None, minutes=0.03, clock="processor", rate=WarmupCosine(warmup=0), save_every=10_000))
    assert summary.stopped_by == "minutes"
    assert 1.8 <= summary.seconds < 10
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)  # the cosine follows the clock


class Slow:
    """Lanes that keep the loop waiting, as a busy machine does."""

    def __init__(self, lanes):
        self.lanes, self.state_dict, self.load_state_dict = lanes, lanes.state_dict, lanes.load_state_dict

    def __next__(self):
        time.sleep(0.05)
        return next(self.lanes)


def test_minutes_of_processor_time_do_not_run_while_the_loop_waits(tmp_path):
    config = replace(CONFIG, steps=8, clock="processor")
    summary = train(model(), Slow(config.lanes(TEXT)), config, tmp_path, quiet=True)
    waited = 8 * config.horizon * 0.05
    assert 0 < summary.seconds < waited


class Poisoned:
    """Lanes after which, at one step, the model's weights are not numbers."""

    def __init__(self, lanes, net, at):
        self.lanes, self.net, self.left, self.state_dict, self.load_state_dict = lanes, net, at, lanes.state_dict, lanes.load_state_dict

    def __next__(self):
        self.left -= 1
        if self.left == 0:
            with torch.no_grad():
                self.net.embedding.weight[:] = float("nan")
        return next(self.lanes)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    net = model()
    with pytest.raises(
        TrainingError, match=r"training stopped at step 8: .*not finite.*step-00000005 is the last good checkpoint. Lower lr=0.005"
    ):
        train(net, Poisoned(CONFIG.lanes(TEXT), net, 7 * 4 + 1), CONFIG, tmp_path, quiet=True)
    assert all(p.isfinite().all() for p in load_pretrained(tmp_path).parameters())
    _, summary = run(tmp_path, resume=True)
    assert summary.steps == 12


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(tmp_path):
    net = model()
    net.embedding.weight.register_hook(lambda g: g * float("inf"))
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(TrainingError, match=r"stopped at step 1: the gradient's norm is (nan|inf); no checkpoint was written yet"):
        train(net, CONFIG.lanes(TEXT), CONFIG, tmp_path, quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    def full(path, model):
        if "00000010" in str(path):
            raise OSError(28, "No space left on device")
        return save(path, model)

    save = checkpoint.save_weights
    monkeypatch.setattr(checkpoint, "save_weights", full)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 10 could not be written.*step-00000005 is whole"):
        run(tmp_path)
    monkeypatch.undo()
    _, summary = run(tmp_path, resume=True)
    assert summary.steps == 12


def test_what_contradicts_is_said(tmp_path):
    run(tmp_path, replace(CONFIG, steps=2))
    with pytest.raises(ConfigError, match="holds a run already, at step-00000002; go on with it by resume"):
        run(tmp_path)
    with pytest.raises(CheckpointError, match="was trained with segment_length=8 and this run has segment_length=4"):
        run(tmp_path, replace(CONFIG, segment_length=4), resume=True)
    other = replace(model().config, dropout=0.3).build()
    with pytest.raises(CheckpointError, match=r"was trained with model=.* and this run has model="):
        run(tmp_path, net=other, resume=True)
    with pytest.raises(CheckpointError, match="the saved optimiser does not fit this one; resume with the config the run began with"):
        run(tmp_path, replace(CONFIG, optimizer=MuonConfig()), resume=True)
    with pytest.raises(ConfigError, match=r"the data give segments of \(3, 8\) and the config says \(3, 9\) \(lanes, tokens\)"):
        train(model(), CONFIG.lanes(TEXT), replace(CONFIG, segment_length=9), tmp_path / "new", quiet=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"horizon": 0}, "horizon=0 must be at least 1"),
        ({"steps": None}, "a run needs an end"),
        ({"minutes": -1.0}, "minutes=-1.0 must be more than 0, or None"),
        ({"clip": 0.0}, "clip=0.0 must be more than 0, or None"),
    ],
    ids=str,
)
def test_a_config_is_checked(change, says):
    with pytest.raises(ConfigError, match=says):
        replace(CONFIG, **change)

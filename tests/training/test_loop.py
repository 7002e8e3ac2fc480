"""A run learns, repeats itself, and goes on after a stop bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import CONFIG, TEXT, lines, model, repeatable, run, same
from torch import nn

from memseq.pretrained import load_pretrained
from memseq.tasks.tokenizers import Bytes
from memseq.training import checkpoint, loop
from memseq.training.backends import Backpropagation, CheckpointChain, Replay
from memseq.training.lanes import EachOnce, Segment
from memseq.training.loop import train
from memseq.training.optim import AdamWConfig, MuonConfig, WarmupCosine
from memseq.training.schedules import Sqrt
from memseq.training.scores import evaluate, measured_dtype


def test_a_run_learns_and_leaves_a_log_checkpoints_and_a_model(tmp_path):
    config = replace(CONFIG, steps=30, eval_every=15, save_every=10)
    net, summary = run(tmp_path, config, valid=EachOnce(TEXT, batch_size=3, segment_length=8), tokenizer=Bytes())
    log = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["step"] for line in log] == list(range(1, 31))
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    for line in log:
        assert line["bits_per_token"] == pytest.approx(line["loss"] / np.log(2))
        assert line["bits_per_byte"] == pytest.approx(line["bits_per_token"])  # a byte is a token here
        assert line["state_bytes"] > 0
        assert line["tokens_per_second"] > 0
        assert line["grad_norm"] > 0
    assert [line["step"] for line in lines(tmp_path) if "valid_loss" in line] == [15, 30]
    assert summary.steps == 30
    assert summary.stopped_by == "steps"
    assert summary.exit_code == 0
    assert summary.tokens == log[-1]["tokens"]
    assert summary.valid.loss < 5.0
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000020", "step-00000030"]
    assert same(load_pretrained(tmp_path), net)
    assert (tmp_path / "tokenizer.json").exists()
    assert any((tmp_path / "tensorboard").iterdir())


def test_the_same_run_twice_is_the_same(tmp_path):
    a, _ = run(tmp_path / "a")
    b, _ = run(tmp_path / "b")
    c, _ = run(tmp_path / "c", replace(CONFIG, seed=1))
    assert same(a, b)
    assert not same(a, c)
    assert repeatable(tmp_path / "a") == repeatable(tmp_path / "b")


@pytest.mark.parametrize(
    ("optimizer", "dtype"), [(AdamWConfig(lr=5e-3), "bfloat16"), (MuonConfig(lr=5e-3), "float32")], ids=["adamw-bf16", "muon-fp32"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, optimizer, dtype):
    """Weights, log, optimiser, text, states and dropout: resumed from step 5 of 12, after the process is gone."""
    config = replace(CONFIG, optimizer=optimizer, dtype=dtype)
    whole, _ = run(tmp_path / "whole", config)
    stopped_early(tmp_path / "parts", config, 7)
    torch.manual_seed(77)  # a new process knows nothing of the old one's generators
    resumed, summary = run(tmp_path / "parts", config, model(seed=5), resume=True)
    assert same(whole, resumed)
    assert summary.steps == 12
    assert repeatable(tmp_path / "whole") == repeatable(tmp_path / "parts")
    ours, theirs = (checkpoint.read_tensors(tmp_path / d / "checkpoints/step-00000012/optimizer.safetensors") for d in ("whole", "parts"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def stopped_early(out, config, steps):
    """A run that dies at once after `steps` steps, as by a power cut: no last checkpoint, no goodbye."""

    class PowerCutError(BaseException):
        pass

    class Cut:
        def __init__(self, lanes):
            self.lanes, self.left = lanes, steps * config.horizon

        def __next__(self):
            if not self.left:
                raise PowerCutError
            self.left -= 1
            return next(self.lanes)

        def __getattr__(self, name):
            return getattr(self.lanes, name)

        def state_dict(self):
            return self.lanes.state_dict()

        def load_state_dict(self, state):
            self.lanes.load_state_dict(state)

    with pytest.raises(PowerCutError):
        train(model(), Cut(config.lanes(TEXT)), config, out, quiet=True)


def test_resuming_twice_and_beyond(tmp_path):
    long = replace(CONFIG, steps=10)
    whole, _ = run(tmp_path / "whole", long)
    stopped_early(tmp_path / "parts", long, 6)
    stopped_early_again = replace(long, save_every=3)
    with pytest.raises(KeyboardInterrupt):
        train(model(), Dies(stopped_early_again.lanes(TEXT), 3 * 4), stopped_early_again, tmp_path / "parts", quiet=True, resume=True)
    resumed, _ = run(tmp_path / "parts", long, resume=True)
    assert same(whole, resumed)


class Dies:
    def __init__(self, lanes, left):
        self.lanes, self.left, self.state_dict, self.load_state_dict = lanes, left, lanes.state_dict, lanes.load_state_dict

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return next(self.lanes)


@pytest.mark.parametrize("backend", [Replay(), Replay(schedule=Sqrt()), CheckpointChain(), Backpropagation()], ids=repr)
def test_every_back_end_takes_the_same_steps(tmp_path, backend):
    """In float64, with dropout off in the oracle's way: the same weights after 5 steps, states carried between windows."""
    config = replace(CONFIG, steps=5)
    oracle, _ = run(tmp_path / "oracle", replace(config, backend=Backpropagation()), model(dropout=0.0).double())
    net, _ = run(tmp_path / "run", replace(config, backend=backend), model(dropout=0.0).double())
    for ours, theirs in zip(net.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_first_step_is_the_gradient_of_the_mean_over_scored_tokens(tmp_path):
    """By hand, in float64: one window, plain autograd, one AdamW step."""
    config = replace(CONFIG, steps=1, clip=None, rate=WarmupCosine(warmup=0), optimizer=AdamWConfig(lr=1e-2, weight_decay=0.0))
    net, _ = run(tmp_path, config, model(dropout=0.0).double())
    hand = model(dropout=0.0).double()
    lanes, state, total, count = config.lanes(TEXT), hand.init_state(3), 0.0, 0
    for _ in range(config.horizon):
        segment = next(lanes)
        for row in range(3):
            if segment.reset[row]:
                state = loop.StreamCell(hand).begin(segment, state)
                break
        loss, scored, state = hand.loss(segment.tokens, segment.targets, state)
        total, count = total + loss, count + int(scored)
    (total / count).backward()
    for name, p in hand.named_parameters():
        scale = getattr(p, "lr_scale", 1.0)
        expected = p.detach() - 1e-2 * scale * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(net.get_parameter(name).detach(), expected, rtol=1e-7, atol=1e-9)


def test_states_are_carried_from_window_to_window(tmp_path):
    """One window of 8 segments and two windows of 4 give the same losses while nothing is learned."""
    still = AdamWConfig(lr=1e-30, weight_decay=0.0)
    run(tmp_path / "long", replace(CONFIG, steps=3, horizon=8, optimizer=still, log_every=3), model(dropout=0.0).double())
    run(tmp_path / "short", replace(CONFIG, steps=6, horizon=4, optimizer=still, log_every=6), model(dropout=0.0).double())
    long, short = lines(tmp_path / "long")[-1], lines(tmp_path / "short")[-1]
    assert long["tokens"] == short["tokens"]
    assert long["loss"] == pytest.approx(short["loss"], rel=1e-12)


def test_evaluation_is_the_loss_of_reading_each_document_alone():
    net = model(dropout=0.5).double().train()
    scores = evaluate(net, EachOnce(TEXT, batch_size=4, segment_length=8), token_bytes=torch.full((256,), 2))
    assert net.training  # and dropout was off meanwhile
    net.eval()
    nats, count = 0.0, 0
    for document in TEXT.documents:
        tokens = torch.from_numpy(document)[None]
        loss, scored, _ = net.loss(tokens[:, :-1], tokens[:, 1:], net.init_state(1))
        nats, count = nats + loss.item(), count + int(scored)
    assert scores.tokens == count
    assert scores.nats == pytest.approx(nats, rel=1e-6)
    assert scores.bits_per_byte == pytest.approx(nats / np.log(2) / count / 2, rel=1e-6)


def test_progress_without_a_terminal_is_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop.Bar, "__init__", lambda self, **_: vars(self).update(quiet=False, every=0.0, _next=0.0, _rich=None))
    net = model()
    train(net, CONFIG.lanes(TEXT), CONFIG, tmp_path)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 12
    assert said[-1].startswith("100%  step 12  loss ")
    assert "tokens/s" in said[-1]
    assert "held" in said[-1]
    assert said[-1].endswith("0 s left")


def test_a_bar_on_a_terminal(tmp_path, monkeypatch):
    import io
    import sys

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    train(model(), CONFIG.lanes(TEXT), CONFIG, tmp_path)
    assert "step 12" in sys.stderr.getvalue()
    assert "100%" in sys.stderr.getvalue()


def test_the_measured_dtype_is_one_of_two():
    assert measured_dtype() in ("float32", "bfloat16")


def test_a_learned_initial_state_learns(tmp_path):
    """A parameter that enters through `init_state` alone gets its gradient through the resets."""

    class Learned(nn.Module):
        config = model().config

        def __init__(self):
            super().__init__()
            self.net = model(dropout=0.0)
            self.first = nn.Parameter(torch.zeros(1, 16))

        def init_state(self, rows):
            return (self.first.expand(rows, -1),)

        def loss(self, tokens, targets, state):
            h = self.net.embedding(tokens) + state[0][:, None]
            loss = nn.functional.cross_entropy((h @ self.net.embedding.weight.T).transpose(1, 2), targets, reduction="sum")
            return loss, (targets != -100).sum(), (0.9 * state[0],)

        def advance(self, tokens, state):
            return (0.9 * state[0],)

    class AsMemory(Learned, loop.Memory):
        pass

    net = AsMemory()
    monkey = loop.save_pretrained
    loop.save_pretrained = lambda *_: None
    try:
        train(net, CONFIG.lanes(TEXT), CONFIG, tmp_path, quiet=True)
    finally:
        loop.save_pretrained = monkey
    assert net.first.detach().abs().min() > 0


def test_segments_go_to_a_device():
    segment = next(CONFIG.lanes(TEXT))
    assert isinstance(segment.to("cpu"), Segment)
    assert torch.equal(segment.to("cpu").tokens, segment.tokens)

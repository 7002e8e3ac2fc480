"""Which parameter gets which rate, decay and optimiser; and a state that goes to disk and back."""

import math

import pytest
import torch
from torch import nn

from memseq.errors import CheckpointError, ConfigError, TrainingError
from memseq.training.optim import AdamWConfig, MuonConfig, WarmupCosine, clip_gradients, hidden_matrices


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.hidden = nn.Linear(4, 4)
        self.forget = nn.Parameter(torch.ones(3, 4))
        self.forget.no_decay, self.forget.lr_scale = True, 0.1
        self.head = nn.Linear(4, 11)
        self.tied = nn.Linear(4, 11, bias=False)
        self.tied.weight = self.embedding.weight


def group_of(optimizers, parameter):
    return next(g for m in optimizers.members for g in m.param_groups if any(p is parameter for p in g["params"]))


def test_decay_touches_matrices_only_and_marks_are_honoured():
    model = Small()
    optimizers = AdamWConfig(lr=0.1, weight_decay=0.5).build(model)
    optimizers.set_rate(0.5)
    assert group_of(optimizers, model.hidden.weight)["weight_decay"] == 0.5
    assert group_of(optimizers, model.hidden.bias)["weight_decay"] == 0.0
    assert group_of(optimizers, model.forget)["weight_decay"] == 0.0
    assert group_of(optimizers, model.hidden.weight)["lr"] == pytest.approx(0.05)
    assert group_of(optimizers, model.forget)["lr"] == pytest.approx(0.005)
    assert sum(len(g["params"]) for g in optimizers.members[0].param_groups) == len(list(model.parameters()))
    assert optimizers.lr == pytest.approx(0.05)


def test_a_step_is_what_the_definition_says():
    """With a gradient and without: one AdamW step by hand, in float64."""
    model = Small().double()
    optimizers = AdamWConfig(lr=0.1, weight_decay=0.5, eps=1e-8).build(model)
    optimizers.set_rate(0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizers.step()
    for name, p in model.named_parameters():
        scale, decay = (0.1, 0.0) if name == "forget" else (1.0, 0.5 if p.ndim == 2 else 0.0)
        lr = 0.05 * scale
        expected = before[name] * (1 - lr * decay) - lr * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), expected, rtol=1e-9, atol=1e-12)


def test_muon_takes_hidden_matrices_and_leaves_embeddings_heads_and_vectors():
    model = Small()
    assert [p is model.hidden.weight for p in hidden_matrices(model)] == [True]
    muon, adamw = MuonConfig().build(model).members
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(model.parameters())) - 1


@pytest.mark.parametrize("config", [AdamWConfig(lr=0.05), MuonConfig(lr=0.05)], ids=lambda c: type(c).__name__)
def test_it_learns_and_its_state_goes_on_where_it_was(config):
    def problem():
        torch.manual_seed(0)
        model = Small()
        return model, config.build(model), torch.randint(0, 11, (64,))

    def steps(model, optimizers, x, n):
        losses = []
        for _ in range(n):
            optimizers.set_rate(1.0)
            loss = nn.functional.cross_entropy(model.head(model.hidden(model.embedding(x)) * model.forget.sum()), (x + 1) % 11)
            loss.backward()
            optimizers.step()
            optimizers.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    whole = steps(*problem(), 40)
    assert whole[-1] < 0.3 * whole[0]
    model, optimizers, x = problem()
    first = steps(model, optimizers, x, 15)
    saved, weights = {k: v.clone() for k, v in optimizers.tensors().items()}, {k: v.clone() for k, v in model.state_dict().items()}
    model, optimizers, x = problem()
    model.load_state_dict(weights)
    optimizers.load_tensors(saved)
    assert first + steps(model, optimizers, x, 25) == whole


def test_another_optimiser_s_state_is_refused():
    muon, adamw = MuonConfig().build(Small()), AdamWConfig().build(nn.Linear(2, 2))
    for optimizers in (muon, adamw):
        for p in optimizers.parameters:
            p.grad = torch.ones_like(p)
        optimizers.step()
    with pytest.raises(CheckpointError, match="resume with the"):
        adamw.load_tensors(muon.tensors())


def test_the_rate_rises_falls_and_ends_at_the_floor():
    rate = WarmupCosine(warmup=10, floor=0.1)
    assert [rate.factor(s, 0.0) for s in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rate.factor(100, 0.5) == pytest.approx(0.55)
    assert rate.factor(100, 1.0) == pytest.approx(0.1) == rate.factor(100, 2.0)
    assert WarmupCosine(warmup=0).factor(0, 0.0) == 1.0


def test_clipping_scales_all_gradients_together():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([a, b], 1.0) == pytest.approx(5.0)
    assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([0.6, 0.0, 0.8])
    assert clip_gradients([a, b], None) == pytest.approx(1.0)
    assert clip_gradients([a, b], 2.0) == pytest.approx(1.0)
    assert torch.cat([a.grad, b.grad]).tolist() == pytest.approx([0.6, 0.0, 0.8])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_is_an_error(bad):
    p = nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([1.0, bad])
    with pytest.raises(TrainingError, match=f"the gradient's norm is {bad}"):
        clip_gradients([p], 1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: AdamWConfig(lr=0.0), "lr=0.0 must be a positive number"),
        (lambda: AdamWConfig(betas=(0.9, 1.0)), "must be two numbers from 0 up to and without 1"),
        (lambda: MuonConfig(weight_decay=-1.0), "weight_decay=-1.0 must be 0 or a positive number"),
        (lambda: WarmupCosine(floor=2.0), "floor=2.0 a share between 0 and 1"),
        (lambda: MuonConfig().build(nn.LayerNorm(3)), "LayerNorm has no hidden linear layer for Muon to train; use AdamWConfig"),
        (lambda: AdamWConfig().build(nn.ReLU()), "there is nothing to train"),
    ],
)
def test_what_cannot_be(make, says):
    with pytest.raises(ConfigError, match=says):
        make()

"""Fidelity of models whose answer is known: identity, noise, a model that says what it reads."""

import math

import pytest
import torch
from torch import nn

from memseq.contract import Memory
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import StackConfig
from memseq.probes import Anatomy, Subject
from memseq.probes.fidelity import FidelityProbe, cross_layer, listened, token_fidelity

V, D = 24, 8


class Echo(Memory):
    """Says the token it reads, for certain, through two layers that do nothing."""

    def __init__(self, lag=0):
        super().__init__()
        self.config, self.lag = StackConfig(vocab_size=V, d_model=D, layers=(SlidingWindowConfig(d_model=D),)), lag
        self.embedding = nn.Embedding(V, D)
        self.layers = nn.ModuleList(nn.Identity() for _ in range(3))

    def check_input(self, x, state):
        assert x.shape[1] > 0

    def init_state(self, batch_size):
        return (torch.zeros(batch_size, self.lag + 1, dtype=torch.int64),)

    def forward(self, tokens, state):
        read = torch.cat([state[0], tokens], dim=1)
        h = self.embedding(tokens)
        for layer in self.layers:
            h = layer(h)
        said = read[:, 1 : 1 + tokens.shape[1]] if self.lag else tokens
        return 100.0 * nn.functional.one_hot(said, V).float(), (read[:, -(self.lag + 1) :],)


def of(model):
    anatomy = Anatomy(layers=tuple(model.layers), embedding=lambda: model.embedding.weight)
    return Subject(name="echo", model=model, anatomy=anatomy)


def test_a_model_that_says_what_it_reads_is_faithful():
    found = FidelityProbe(length=256).run(of(Echo()))
    at = {row["lag"]: row["fidelity"] for row in found["etmf"]}
    assert at[0] == pytest.approx(1.0, abs=1e-6)
    assert abs(at[8]) < 0.25
    assert found["floor"] == pytest.approx(at[8], abs=0.15)
    assert [row["gap"] for row in found["eclmf"]] == [1, 2]
    assert all(row["eclmf_r"] == pytest.approx(1.0, abs=1e-5) for row in found["eclmf"])  # layers that do nothing
    assert all(row["eclmf"] == pytest.approx(1.0, abs=1e-5) for row in found["eclmf"])


def test_the_lag_is_the_lag():
    found = FidelityProbe(length=256).run(of(Echo(lag=8)))
    at = {row["lag"]: row["fidelity"] for row in found["etmf"]}
    assert at[8] > 0.95  # but for the first eight tokens
    assert at[0] < 0.3


def test_independent_layers_share_what_chance_gives():
    x, y = torch.randn(4096, 16, dtype=torch.float64), torch.randn(4096, 16, dtype=torch.float64)
    eclmf, eclmf_r = cross_layer(x, y)
    assert eclmf_r == pytest.approx(1 - math.sqrt(1 - 16 / 4096), abs=2e-3)
    assert eclmf == pytest.approx(eclmf_r, abs=0.02)  # both of one scale


def test_linear_layers_are_whole_and_the_scale_shows_in_the_paper_s_form_alone():
    x, w = torch.randn(500, 8, dtype=torch.float64), torch.randn(8, 8, dtype=torch.float64)
    y = x @ w + 0.5 * torch.randn(500, 8, dtype=torch.float64)
    one, ten = cross_layer(x, y), cross_layer(x, 10 * y)
    assert cross_layer(x, x @ w)[1] == pytest.approx(1.0, abs=1e-6)
    assert one[1] == pytest.approx(ten[1], abs=1e-9)
    assert 1 - ten[0] == pytest.approx(10 * (1 - one[0]), rel=1e-6)


def test_token_fidelity_is_a_cosine():
    embedding = torch.eye(4)
    tokens = torch.tensor([[0, 1, 2, 3]])
    predicted = torch.tensor([[[1.0, 0, 0, 0], [1.0, 1, 0, 0], [0, 0, 0, 1.0], [0, 0, 2.0, 0]]])
    assert token_fidelity(tokens, predicted, embedding, 0) == pytest.approx((1 + 2**-0.5 + 0 + 0) / 4)
    assert token_fidelity(tokens, predicted, embedding, 1) == pytest.approx((2**-0.5 + 0 + 1) / 3)


def test_listening_changes_nothing_and_leaves_nothing_behind():
    model = StackConfig(vocab_size=V, d_model=D, layers=3 * (SlidingWindowConfig(d_model=D, n_heads=2, window=4),)).build()
    layers = [block.norms[0] for block in model.blocks] + [model.norm]
    tokens = torch.randint(V, (2, 9))
    heard, logits, _ = listened(model, layers, tokens, model.init_state(2))
    expected, _ = model(tokens, model.init_state(2))
    assert torch.equal(logits, expected)
    assert torch.equal(heard[0], model.embedding(tokens))
    assert torch.equal(model.head(model.norm(heard[-1])), expected)
    assert all(not layer._forward_pre_hooks for layer in layers)

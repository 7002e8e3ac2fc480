"""Recoding: gradients by hand against autograd and differences, the LSTM itself at step 0, descent, and the sign of what is published."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.errors import ConfigError
from memseq.models.recoding import AdaptiveStep, Decoders, FixedStep, LearnedStep, Masks, RecodingConfig, Surprisal
from memseq.ops.delta_rule import delta_recurrent
from memseq.ops.recoding import entropy, power, surprisal
from memseq.ops.recurrent import lstm_cell

V, D = 11, 6
SIGNALS = {
    "log": Surprisal(),
    "power": Surprisal(form="power"),
    "masks": Masks(n=4, rate=0.4),
    "decoders": Decoders(n=3, prior_scale=0.6),
}


def made(signal="log", step=FixedStep(alpha=0.2), n_layers=2):  # noqa: B008
    torch.manual_seed(1)
    model = RecodingConfig(vocab_size=V, d_model=D, n_layers=n_layers, signal=SIGNALS[signal], step=step).build().double()
    with torch.no_grad():
        model.embedding.weight.mul_(3)
    return model


def tokens(T=9):
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(T))


def plain(model, ids):
    """The LSTM without any step, by the cell of the library."""
    carries, read = [2 * (torch.zeros(2, D, dtype=torch.float64),) for _ in model.cells], []
    for a in model.cells[0].inputs(model.embedding(ids)).unbind(1):
        for layer, cell in enumerate(model.cells):
            carries[layer] = lstm_cell(a if layer == 0 else cell.inputs(carries[layer - 1][0]), carries[layer], w_h=cell.w_h)
        read.append(carries[-1][0])
    return torch.stack(read, dim=1)


def recoded(model, ids, alpha):
    """The equations with gradients from autograd: each token on leaves of its own, that a graph of one token hangs on."""
    waits = isinstance(model.config.signal, Surprisal)
    L = len(model.cells)
    h, c = ([torch.zeros(2, D, dtype=torch.float64) for _ in range(L)] for _ in range(2))
    read = []
    for t in range(ids.shape[1]):
        x, states = model.embedding(ids[:, t]), []
        for layer, cell in enumerate(model.cells):
            x, cell_state = lstm_cell(cell.inputs(x), (h[layer], c[layer]), w_h=cell.w_h)
            states.append((x, cell_state))
        flat = [t for pair in states for t in pair]
        gold = ids[:, t + 1] if t + 1 < ids.shape[1] else ids[:, 0]
        g = torch.autograd.grad(error_of(model, x, gold).sum(), flat, retain_graph=True)
        if waits:
            read.append(x)
        after = [value - alpha * slope for value, slope in zip(flat, g, strict=True)]
        h, c = after[::2], after[1::2]
        if not waits:
            read.append(h[-1])
    return torch.stack(read, dim=1)


def error_of(model, h, gold):
    signal = model.config.signal
    if isinstance(signal, Surprisal):
        p = (h @ model.embedding.weight.mT).softmax(-1).gather(-1, gold[:, None])[:, 0]
        return -p.log() if signal.form == "log" else p**-p - 1
    o = h @ model.decoders.mT if isinstance(signal, Decoders) else (h * model.masks.double()[:, None]) @ model.embedding.weight.mT
    mean = o.softmax(-1).mean(0)
    return -(mean * mean.log()).sum(-1)


@pytest.mark.parametrize("signal", SIGNALS)
def test_without_a_step_it_is_the_lstm_bit_for_bit(signal):
    model, ids = made(signal, FixedStep(alpha=0.0)), tokens()
    assert torch.equal(model.features(ids, model.init_state(2))[0], plain(model, ids))


@pytest.mark.parametrize("signal", SIGNALS)
def test_states_and_gradients_are_those_of_autograd_with_a_constant_step(signal):
    model, ids = made(signal), tokens()
    found, wanted = model.features(ids, model.init_state(2))[0], recoded(model, ids, 0.2)
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert (found - plain(model, ids)).abs().max().item() > 1e-3
    probe, weights = torch.randn_like(found), [model.cells[0].w_x, model.cells[1].w_h, model.embedding.weight]
    ours, theirs = (torch.autograd.grad((y * probe).sum(), weights) for y in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_gradient_is_the_slope_by_differences(signal):
    model, h = made(signal), torch.randn(2, D, dtype=torch.float64)
    gold = torch.tensor([3, 7])
    with torch.no_grad():
        delta, g = model.error(h, gold)
        assert_close(delta, error_of(model, h, gold), rtol=1e-10, atol=1e-12)
        for i in range(D):
            nudge = torch.zeros(D, dtype=torch.float64)
            nudge[i] = 1e-6
            slope = (model.error(h + nudge, gold)[0] - model.error(h - nudge, gold)[0]) / 2e-6
            assert_close(slope, g[:, i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_small_step_lowers_the_error_at_its_own_token(signal):
    model = made(signal)
    h, gold = torch.randn(1000, D, dtype=torch.float64), torch.randint(V, (1000,))
    with torch.no_grad():
        delta, g = model.error(h, gold)
        alpha = 1e-3 * h.norm(dim=1) / g.norm(dim=1)
        after, _ = model.error(h - alpha[:, None] * g, gold)
    assert float((after < delta).double().mean()) >= 0.999


def test_what_is_predicted_never_saw_the_answer_and_the_next_does():
    model, ids = made("log", FixedStep(alpha=1.0)), tokens()
    other = ids.clone()
    other[:, 5] = (ids[:, 5] + 1) % V
    one, two = (model(x, model.init_state(2))[0] for x in (ids, other))
    assert torch.equal(one[:, :5], two[:, :5])
    _, state = model(ids[:, :4], model.init_state(2))
    assert torch.equal(model(ids[:, 4:5], state)[0], model(ids[:, :5], model.init_state(2))[0][:, 4:])


def test_the_power_makes_an_unlikely_answer_less_likely():
    logits = torch.zeros(1, 20, dtype=torch.float64)  # p = 1 / 20
    gold = torch.tensor([4])
    for form, better in ((surprisal, True), (power, False)):
        _, g = form(logits, gold)
        p = (logits - 0.1 * g).softmax(-1)[0, 4]
        assert (float(p) > 0.05) == better


def test_equal_decoders_are_one():
    o = torch.randn(1, 5, V, dtype=torch.float64)
    one, g_one = entropy(o)
    many, g_many = entropy(o.repeat(4, 1, 1))
    assert_close(many, one, rtol=1e-12, atol=1e-12)
    assert_close(g_many.sum(0), g_one[0], rtol=1e-12, atol=1e-12)
    p = o[0].softmax(-1)
    assert_close(one, -(p * p.log()).sum(-1), rtol=1e-12, atol=1e-12)
    rows, _ = entropy(torch.randn(3, 5, V, dtype=torch.float64))
    assert rows.shape == (5,)  # players are averaged, not streams


def test_decoders_are_held_to_where_they_began():
    model = made("decoders")
    assert float(model.anchor_loss(100)) == 0.0
    with torch.no_grad():
        model.decoders[0] += 0.5
    assert_close(model.anchor_loss(100), torch.tensor(0.1 / 0.6 / 100 * (0.25 * V * D) ** 0.5 / 3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="Surprisal has no decoders"):
        made("log").anchor_loss(100)


@pytest.mark.parametrize("step", [LearnedStep(), AdaptiveStep(hidden=(5, 4))])
def test_steps_are_above_zero_and_learn(step):
    model, ids = made("log", step), tokens()
    total, _, _ = model.loss(ids[:, :-1], ids[:, 1:], model.init_state(2))
    total.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in list(model.step_size.parameters())[-1:])
    assert float(torch.as_tensor(model.step_size(1, torch.randn(2, D).double())).min()) > 0


def test_recoding_a_matrix_by_its_error_is_the_delta_rule():
    """delta = 1/2 |S^T k - v|^2: one step of alpha on the state is one write of strength alpha."""
    k, v = F.normalize(torch.randn(1, 1, 1, 5, dtype=torch.float64), dim=-1), torch.randn(1, 1, 1, 4, dtype=torch.float64)
    S = torch.randn(1, 1, 5, 4, dtype=torch.float64, requires_grad=True)
    delta = 0.5 * (k[:, :, 0, None] @ S - v[:, :, 0, None]).square().sum()
    (g,) = torch.autograd.grad(delta, S)
    alpha = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    _, written = delta_recurrent(k, k, v, alpha, torch.zeros_like(alpha), S.detach())
    assert_close(S.detach() - 0.3 * g, written, rtol=1e-10, atol=1e-12)

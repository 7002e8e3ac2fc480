"""The classical cells against plain Python loops written from the equations, and torch's kernels against the cells."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.recurrent import (
    ABLATIONS,
    ablated_lstm_cell,
    cho_gru_cell,
    coupled_lstm_cell,
    elman_cell,
    elman_fused,
    gru_cell,
    gru_fused,
    jordan_cell,
    jordan_contexts,
    layer_norm_lstm_cell,
    lstm_1997_cell,
    lstm_cell,
    lstm_fused,
    peephole_lstm_cell,
    projected_lstm_cell,
    scan,
    zoneout,
)

B, T, I, H = 2, 11, 3, 5
exact = partial(assert_close, rtol=1e-12, atol=1e-12)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights(n_gates: int, carried: int = H) -> dict[str, torch.Tensor]:
    shapes = {"w_x": (n_gates * H, I), "w_h": (n_gates * H, carried), "b": (n_gates * H,)}
    return {name: torch.randn(shape).mul(0.7).requires_grad_() for name, shape in shapes.items()}


def scanned(cell, x, carry, *, w_x, b):
    return scan(cell, F.linear(x, w_x, b), carry)


def sigma(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def by_hand(token, x, carry):
    """One stream, one token and one unit at a time, in Python's own floats."""
    rows = []
    for stream in range(x.shape[0]):
        state = [[float(v) for v in leaf[stream]] for leaf in carry]
        for x_t in x[stream].tolist():
            state = token(x_t, state)
            rows.append(state[0])
    return torch.tensor(rows).reshape(x.shape[0], x.shape[1], -1)


def net(w, gate, unit, x, h, n_hidden=H):
    """W_x x + W_h h + b of one unit of one gate."""
    row = gate * n_hidden + unit
    return sum(a * v for a, v in zip(w["w_x"][row].tolist(), x, strict=True)) + recurrent(w, gate, unit, h) + w["b"].tolist()[row]


def recurrent(w, gate, unit, h):
    return sum(a * v for a, v in zip(w["w_h"][gate * H + unit].tolist(), h, strict=True))


def test_peepholes_see_the_old_cell_at_the_input_and_the_new_one_at_the_output():
    w, x, h, c = weights(4), torch.randn(B, T, I), torch.randn(B, H), torch.randn(B, H)
    p = {name: torch.randn(H) for name in ("p_i", "p_f", "p_o")}

    def token(x_t, state):
        old_h, old_c = state
        new_h, new_c = [], []
        for u in range(H):
            i = sigma(net(w, 0, u, x_t, old_h) + float(p["p_i"][u]) * old_c[u])
            f = sigma(net(w, 1, u, x_t, old_h) + float(p["p_f"][u]) * old_c[u])
            new_c.append(f * old_c[u] + i * math.tanh(net(w, 2, u, x_t, old_h)))
            o = sigma(net(w, 3, u, x_t, old_h) + float(p["p_o"][u]) * new_c[u])
            new_h.append(o * math.tanh(new_c[u]))
        return [new_h, new_c]

    y, _ = scanned(partial(peephole_lstm_cell, w_h=w["w_h"], **p), x, (h, c), w_x=w["w_x"], b=w["b"])
    exact(y, by_hand(token, x, (h, c)))


def test_coupled_gates_write_what_they_do_not_keep():
    w, x, h, c = weights(3), torch.randn(B, T, I), torch.randn(B, H), torch.randn(B, H)

    def token(x_t, state):
        old_h, old_c = state
        keep = [sigma(net(w, 0, u, x_t, old_h)) for u in range(H)]
        new_c = [keep[u] * old_c[u] + (1 - keep[u]) * math.tanh(net(w, 1, u, x_t, old_h)) for u in range(H)]
        return [[sigma(net(w, 2, u, x_t, old_h)) * math.tanh(new_c[u]) for u in range(H)], new_c]

    y, _ = scanned(partial(coupled_lstm_cell, w_h=w["w_h"]), x, (h, c), w_x=w["w_x"], b=w["b"])
    exact(y, by_hand(token, x, (h, c)))


def test_layer_norm_normalises_each_product_over_all_gates_and_the_cell_on_its_way_out():
    w, x, h, c = weights(4), torch.randn(B, T, I), torch.randn(B, H), torch.randn(B, H)
    gain_x, gain_h, gain_c, bias_c = torch.randn(4 * H), torch.randn(4 * H), torch.randn(H), torch.randn(H)
    eps = 1e-5

    def normal(values, gain, bias=None):
        mean = sum(values) / len(values)
        scale = 1 / math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + eps)
        return [(v - mean) * scale * float(gain[k]) + (0.0 if bias is None else float(bias[k])) for k, v in enumerate(values)]

    def token(x_t, state):
        old_h, old_c = state
        from_x = normal([sum(a * v for a, v in zip(row, x_t, strict=True)) for row in w["w_x"].tolist()], gain_x)
        from_h = normal([recurrent(w, row // H, row % H, old_h) for row in range(4 * H)], gain_h)
        z = [a + r + float(b) for a, r, b in zip(from_x, from_h, w["b"].tolist(), strict=True)]
        new_c = [sigma(z[H + u]) * old_c[u] + sigma(z[u]) * math.tanh(z[2 * H + u]) for u in range(H)]
        shown = normal(new_c, gain_c, bias_c)
        return [[sigma(z[3 * H + u]) * math.tanh(shown[u]) for u in range(H)], new_c]

    a = F.layer_norm(F.linear(x, w["w_x"]), (4 * H,), gain_x, w["b"], eps)
    y, _ = scan(partial(layer_norm_lstm_cell, w_h=w["w_h"], gain_h=gain_h, gain_c=gain_c, bias_c=bias_c, eps=eps), a, (h, c))
    exact(y, by_hand(token, x, (h, c)), rtol=1e-11, atol=1e-11)  # Python sums the moments in another order


@pytest.mark.parametrize("without", ABLATIONS)
def test_an_ablated_part_is_an_open_gate_or_a_squash_left_out(without):
    kept = [p for p, name in zip("ifgo", ("input_gate", "forget_gate", None, "output_gate"), strict=True) if name != without]
    w, x, h, c = weights(len(kept)), torch.randn(B, T, I), torch.randn(B, H), torch.randn(B, H)

    def token(x_t, state):
        old_h, old_c = state
        z = {p: [net(w, kept.index(p), u, x_t, old_h) for u in range(H)] for p in kept}
        gate = {p: [sigma(v) for v in z[p]] if p in z else [1.0] * H for p in "ifo"}
        g = z["g"] if without == "input_squash" else [math.tanh(v) for v in z["g"]]
        new_c = [gate["f"][u] * old_c[u] + gate["i"][u] * g[u] for u in range(H)]
        return [[gate["o"][u] * (new_c[u] if without == "output_squash" else math.tanh(new_c[u])) for u in range(H)], new_c]

    y, _ = scanned(partial(ablated_lstm_cell, w_h=w["w_h"], without=without), x, (h, c), w_x=w["w_x"], b=w["b"])
    exact(y, by_hand(token, x, (h, c)), rtol=1e-11, atol=1e-11)


def test_the_cell_of_1997_squashes_to_two_and_never_forgets():
    w, x, h, c = weights(3), torch.randn(B, T, I), torch.randn(B, H), torch.randn(B, H)

    def token(x_t, state):
        old_h, old_c = state
        new_c = [old_c[u] + sigma(net(w, 0, u, x_t, old_h)) * (4 * sigma(net(w, 1, u, x_t, old_h)) - 2) for u in range(H)]
        return [[sigma(net(w, 2, u, x_t, old_h)) * (2 * sigma(new_c[u]) - 1) for u in range(H)], new_c]

    y, _ = scanned(partial(lstm_1997_cell, w_h=w["w_h"], truncated=True), x, (h, c), w_x=w["w_x"], b=w["b"])
    exact(y, by_hand(token, x, (h, c)))


def test_the_truncated_gradient_is_the_forward_sum_of_1997():
    """The paper's own algorithm has no backward pass: each weight keeps d c / d w, a running sum, and is trained with it."""
    w, x, y_star = weights(3), torch.randn(1, T, I), torch.randn(1, T, H)
    cell = partial(lstm_1997_cell, w_h=w["w_h"], truncated=True)
    y, _ = scanned(cell, x, (torch.zeros(1, H), torch.zeros(1, H)), w_x=w["w_x"], b=w["b"])
    (0.5 * (y - y_star).square().sum()).backward()

    h, c = torch.zeros(H), torch.zeros(H)
    traces = {g: torch.zeros(H, I + H + 1) for g in "ig"}  # d c_u / d (row u of W_x, W_h and b), as if h were given
    found = {g: torch.zeros(H, I + H + 1) for g in "igo"}
    rows = torch.cat([w["w_x"], w["w_h"], w["b"][:, None]], dim=1).detach().split(H)
    for x_t, target in zip(x[0], y_star[0], strict=True):
        seen = torch.cat([x_t, h, torch.ones(1)])
        i, g, o = (row @ seen for row in rows)
        i, o, g_sigma = i.sigmoid(), o.sigmoid(), g.sigmoid()
        g = 4 * g_sigma - 2
        c = c + i * g
        traces["i"] = traces["i"] + (i * (1 - i) * g)[:, None] * seen
        traces["g"] = traces["g"] + (i * 4 * g_sigma * (1 - g_sigma))[:, None] * seen
        c_sigma = c.sigmoid()
        h = o * (2 * c_sigma - 1)
        error = h - target
        found["o"] += (error * (2 * c_sigma - 1) * o * (1 - o))[:, None] * seen
        to_cell = error * o * 2 * c_sigma * (1 - c_sigma)
        found["i"] += to_cell[:, None] * traces["i"]
        found["g"] += to_cell[:, None] * traces["g"]
    by_autograd = torch.cat([w["w_x"].grad, w["w_h"].grad, w["b"].grad[:, None]], dim=1)
    exact(by_autograd, torch.cat([found["i"], found["g"], found["o"]]))


def test_the_whole_gradient_of_1997_differs_from_the_truncated_one():
    w, x = weights(3), torch.randn(1, T, I)
    grads = []
    for truncated in (True, False):
        y, _ = scanned(
            partial(lstm_1997_cell, w_h=w["w_h"], truncated=truncated), x, (torch.zeros(1, H), torch.zeros(1, H)), w_x=w["w_x"], b=w["b"]
        )
        grads.append(torch.autograd.grad(y.square().sum(), w["w_x"])[0])
    assert (grads[0] - grads[1]).abs().max() > 1e-3


def test_cho_resets_before_the_product():
    w, x, h = weights(3), torch.randn(B, T, I), torch.randn(B, H)

    def token(x_t, state):
        (old,) = state
        r, z = ([sigma(net(w, gate, u, x_t, old)) for u in range(H)] for gate in (0, 1))
        n = [math.tanh(net(w, 2, u, x_t, [a * b for a, b in zip(r, old, strict=True)])) for u in range(H)]
        return [[(1 - z[u]) * n[u] + z[u] * old[u] for u in range(H)]]

    w_rz, w_n = w["w_h"].split((2 * H, H))
    y, _ = scanned(partial(cho_gru_cell, w_rz=w_rz, w_n=w_n), x, (h,), w_x=w["w_x"], b=w["b"])
    exact(y, by_hand(token, x, (h,)))


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_jordan_feeds_back_a_fading_sum_of_its_outputs(decay):
    w, x = weights(1, carried=4), torch.randn(B, T, I)
    w_y, b_y, y, u = torch.randn(4, H), torch.randn(4), torch.randn(B, 4), torch.randn(B, 4)

    def token(x_t, state):
        out, context = state
        context = [decay * a + b for a, b in zip(context, out, strict=True)]
        h = [math.tanh(net(w, 0, k, x_t, context)) for k in range(H)]
        return [[sum(a * v for a, v in zip(row, h, strict=True)) + b for row, b in zip(w_y.tolist(), b_y.tolist(), strict=True)], context]

    cell = partial(jordan_cell, w_u=w["w_h"], w_y=w_y, b_y=b_y, decay=decay, phi=torch.tanh, squash=lambda z: z)
    exact(scanned(cell, x, (y, u), w_x=w["w_x"], b=w["b"])[0], by_hand(token, x, (y, u)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_a_teacher_makes_every_context_known_at_once(decay, chunk_size):
    outputs, y, u = torch.randn(B, T, 4), torch.randn(B, 4), torch.randn(B, 4)
    one_by_one, context, last = [], u, y
    for output in outputs.unbind(1):
        context = decay * context + last
        one_by_one.append(context)
        last = output
    exact(jordan_contexts(outputs, y, u, decay=decay, chunk_size=chunk_size), torch.stack(one_by_one, dim=1))


def gradients(result, leaves):
    y, carry = result
    loss = y.square().sum() + sum(leaf.sin().sum() for leaf in carry)
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("name", ["elman tanh", "elman relu", "lstm", "projected lstm", "gru"])
def test_the_kernel_computes_the_definition_and_its_gradient(name, length):
    n_gates = {"gru": 3}.get(name, 4 if "lstm" in name else 1)
    w = weights(n_gates, carried=2 if name == "projected lstm" else H)
    x = torch.randn(B, length, I, requires_grad=True)
    h, c, extra = (torch.randn(s, requires_grad=True) for s in [(B, w["w_h"].shape[1]), (B, H), (2, H)])
    leaves = [x, h, *w.values()]
    if "elman" in name:
        activation = name.split()[1]
        definition = scanned(partial(elman_cell, w_h=w["w_h"], phi=getattr(torch, activation)), x, (h,), w_x=w["w_x"], b=w["b"])
        y, after = elman_fused(x, h, **w, activation=activation)
        fused = y, (after,)
    elif name == "gru":
        c_n = extra[0].detach().requires_grad_()
        leaves.append(c_n)
        definition = scanned(partial(gru_cell, w_h=w["w_h"], c_n=c_n), x, (h,), w_x=w["w_x"], b=w["b"])
        y, after = gru_fused(x, h, **w, c_n=c_n)
        fused = y, (after,)
    elif name == "lstm":
        leaves.append(c)
        definition = scanned(partial(lstm_cell, w_h=w["w_h"]), x, (h, c), w_x=w["w_x"], b=w["b"])
        fused = lstm_fused(x, (h, c), **w)
    else:
        leaves += [c, extra]
        definition = scanned(partial(projected_lstm_cell, w_h=w["w_h"], w_p=extra), x, (h, c), w_x=w["w_x"], b=w["b"])
        fused = lstm_fused(x, (h, c), **w, w_p=extra)
    exact(fused, definition)
    exact(gradients(fused, leaves), gradients(definition, leaves), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_float32_kernels_stay_near_the_float64_definition(kind):
    """On a processor the LSTM of float32 runs on another library than that of float64."""
    module = kind(16, 24, batch_first=True)
    x = torch.randn(3, 40, 16)
    wide = module(x)[0]
    w = {ours: getattr(module, f"{theirs}_l0") for ours, theirs in {"w_x": "weight_ih", "w_h": "weight_hh", "b": "bias_ih"}.items()}
    hidden_bias = module.bias_hh_l0
    c_n = hidden_bias[2 * 24 :] if kind is nn.GRU else None
    w["b"] = w["b"] + (torch.cat([hidden_bias[: 2 * 24], torch.zeros(24)]) if kind is nn.GRU else hidden_bias)
    w = {name: value.float() for name, value in w.items()}
    x, h = x.float(), torch.zeros(3, 24, dtype=torch.float32)
    if kind is nn.LSTM:
        narrow = lstm_fused(x, (h, h), **w)[0]
    elif kind is nn.GRU:
        narrow = gru_fused(x, h, **w, c_n=c_n.float())[0]
    else:
        narrow = elman_fused(x, h, **w, activation="tanh")[0]
    assert_close(narrow.double(), wide, rtol=1e-5, atol=2e-6)


def test_zoneout_keeps_units_at_its_rate_and_reads_their_mean():
    def cell(a, carry):
        return (a, carry[1] + 1)

    before, a = (torch.zeros(1, 20_000), torch.zeros(1, 20_000)), torch.ones(1, 20_000)
    h, c = zoneout(cell, (0.1, 0.5), training=True)(a, before)
    assert set(h.unique().tolist()) == {0.0, 1.0}
    assert abs(float(h.mean()) - 0.9) < 0.01
    assert abs(float(c.mean()) - 0.5) < 0.015
    exact(zoneout(cell, (0.1, 0.5), training=False)(a, before), (torch.full_like(a, 0.9), torch.full_like(a, 0.5)))


def test_recurrent_dropout_drops_what_is_written_and_nothing_that_is_kept():
    a = torch.full((1, 4 * 20_000), 40.0)  # gates open, squash at one
    c = torch.full((1, 20_000), 3.0)
    _, written = lstm_cell(a, (torch.zeros(1, 1), c), w_h=torch.zeros(80_000, 1), g_dropout=0.25)
    assert_close(sorted(written.unique().tolist()), [3.0, 3.0 + 1 / 0.75])
    assert abs(float(written.mean()) - 4.0) < 0.02

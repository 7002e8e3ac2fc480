"""The chunk forms of the decay per channel against the recurrence, token by token; reductions; gates at their limits; precision."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.channel_decay import (
    channel_chunkwise,
    channel_recurrent,
    gla_chunkwise,
    gla_recurrent,
    kda_chunkwise,
    kda_recurrent,
    rwkv6_chunkwise,
    rwkv6_recurrent,
)
from memseq.ops.channel_scores import decayed_scores, unit_solve

F64 = torch.float64
B, H, T, K, V = 2, 2, 41, 5, 3
FORMS = {
    "channel": (channel_recurrent, channel_chunkwise, "q k v a b log_w"),
    "gla": (gla_recurrent, gla_chunkwise, "q k v log_w"),
    "rwkv6": (rwkv6_recurrent, rwkv6_chunkwise, "q k v u log_w"),
    "kda": (kda_recurrent, kda_chunkwise, "q k v beta log_w"),
}


def inputs(T=T, K=K, V=V, dtype=F64, gates=3.0, B=B, H=H):
    """Random streams; keys of length one, so that the delta rules do not explode; decays from e^-gates to 1."""
    unit = F.normalize(torch.randn(B, H, T, K, dtype=F64), dim=-1)
    made = {
        "q": torch.randn(B, H, T, K, dtype=F64) * K**-0.5,
        "k": unit,
        "v": torch.randn(B, H, T, V, dtype=F64),
        "a": -F.normalize(torch.randn(B, H, T, K, dtype=F64), dim=-1),
        "u": torch.randn(H, K, dtype=F64),
        "beta": torch.rand(B, H, T, dtype=F64),
        "log_w": -gates * torch.rand(B, H, T, K, dtype=F64),
        "S": torch.randn(B, H, K, V, dtype=F64),
    }
    made["b"] = -made["a"] * torch.rand(B, H, T, K, dtype=F64)
    return {name: t.to(dtype) for name, t in made.items()}


def read(form, names, given, S, **options):
    return form(*(given[name] for name in names.split()), S, **options)


def relative(found, wanted):
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("start", ["nothing", "something"])
@pytest.mark.parametrize("chunk_size", [1, 7, 16, 64, T])
@pytest.mark.parametrize("form", FORMS)
def test_chunks_are_the_recurrence_in_outputs_state_and_gradients(form, chunk_size, start):
    recurrent, chunkwise, names = FORMS[form]
    given = {name: t.requires_grad_() for name, t in inputs().items()}
    S = given["S"] if start == "something" else torch.zeros(B, H, K, V, dtype=F64)
    wanted, found = read(recurrent, names, given, S), read(chunkwise, names, given, S, chunk_size=chunk_size)
    seeds = [torch.randn_like(t) for t in wanted]
    sources = [given[name] for name in [*names.split(), *["S"] * (start == "something")]]
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(out, sources, seeds) for out in (found, wanted)]
    for f, w in zip(*grads, strict=True):
        assert_close(f, w, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_where_a_stream_is_cut_changes_nothing(form):
    _, chunkwise, names = FORMS[form]
    given = inputs()
    whole, end = read(chunkwise, names, given, given["S"], chunk_size=8)
    for cut in (1, 8, 19, 40):
        S, read_so_far = given["S"], []
        for piece in (slice(0, cut), slice(cut, T)):
            now = {name: t if name in ("u", "S") else t[:, :, piece] for name, t in given.items()}
            y, S = read(chunkwise, names, now, S, chunk_size=8)
            read_so_far.append(y)
        assert_close(torch.cat(read_so_far, dim=2), whole, rtol=1e-10, atol=1e-12)
        assert_close(S, end, rtol=1e-10, atol=1e-12)


def test_scores_are_their_definition_pair_by_pair():
    x, y, z, log_w = (torch.randn(3, 8, K, dtype=F64) for _ in range(4))
    log_w = -log_w.abs()
    A, x_start, y_end, end = decayed_scores([x, z], [y], log_w, inclusive=(True, False))
    c = log_w.cumsum(1)
    for i in range(8):
        for j in range(8):
            both = (x[:, i] * y[:, j] * (c[:, i] - c[:, j]).exp()).sum(-1) if j <= i else torch.zeros(3, dtype=F64)
            strict = (z[:, i] * y[:, j] * (c[:, i] - log_w[:, i] - c[:, j]).exp()).sum(-1) if j < i else torch.zeros(3, dtype=F64)
            assert_close(A[:, 0, 0, i, j], both, rtol=1e-11, atol=1e-13)
            assert_close(A[:, 1, 0, i, j], strict, rtol=1e-11, atol=1e-13)
    assert_close(x_start[:, :, 0], x * c.exp(), rtol=1e-11, atol=1e-13)
    assert_close(x_start[:, :, 1], z * (c - log_w).exp(), rtol=1e-11, atol=1e-13)
    assert_close(y_end[:, :, 0], y * (c[:, -1:] - c).exp(), rtol=1e-11, atol=1e-13)
    assert_close(end, c[:, -1].exp(), rtol=1e-11, atol=1e-13)


def test_hand_written_gradients_are_numerical_derivatives():
    x, y, log_w = (torch.randn(2, 4, 3, dtype=F64).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(lambda x, y, g: decayed_scores([x, y], [y, x], -g.abs(), inclusive=(True, False)), (x, y, log_w))
    A, right = torch.randn(3, 8, 8, dtype=F64).requires_grad_(), torch.randn(3, 8, 2, dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(unit_solve, (A, right))


def test_the_unit_solve_is_substitution():
    A, right = torch.randn(3, 16, 16, dtype=F64), torch.randn(3, 16, 2, dtype=F64)
    wanted = torch.linalg.solve_triangular(torch.eye(16, dtype=F64) - A.tril(-1), right, upper=False, unitriangular=True)
    assert_close(unit_solve(A, right), wanted, rtol=1e-9, atol=1e-9)


def test_with_one_gate_for_all_channels_gla_is_retention():
    given, gamma = inputs(), 0.9
    log_w = torch.full((B, H, T, K), gamma, dtype=F64).log()
    y, _ = gla_chunkwise(given["q"], given["k"], given["v"], log_w, torch.zeros(B, H, K, V, dtype=F64), chunk_size=16)
    lag = torch.arange(T)[:, None] - torch.arange(T)
    D = torch.where(lag >= 0, gamma ** lag.clamp(min=0).double(), 0.0)
    assert_close(y, ((given["q"] @ given["k"].mT) * D) @ given["v"], rtol=1e-10, atol=1e-12)


def test_with_one_gate_for_all_channels_kda_is_the_gated_delta_rule():
    from memseq.ops.linear_attention import delta_recurrent

    given = inputs()
    log_a = given["log_w"][..., 0]
    y, S = kda_chunkwise(*(given[n] for n in ["q", "k", "v", "beta"]), log_a[..., None].expand(-1, -1, -1, K), given["S"], chunk_size=16)
    wanted = delta_recurrent(given["q"], given["k"], given["v"], given["beta"], log_a, given["S"])
    assert_close(y, wanted[0], rtol=1e-10, atol=1e-12)
    assert_close(S, wanted[1], rtol=1e-10, atol=1e-12)


def test_kda_is_the_general_form_with_one_key():
    given = inputs()
    q, k, v, beta, log_w, S = (given[n] for n in ["q", "k", "v", "beta", "log_w", "S"])
    wanted = channel_recurrent(q, beta[..., None] * k, v, log_w.exp() * k, -beta[..., None] * k, log_w, S)
    for found in (kda_recurrent(q, k, v, beta, log_w, S), kda_chunkwise(q, k, v, beta, log_w, S, chunk_size=16)):
        assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_the_general_form_without_removal_is_gla():
    given = inputs()
    nothing = torch.zeros_like(given["k"])
    q, k, v, log_w, S = (given[n] for n in ["q", "k", "v", "log_w", "S"])
    wanted = gla_recurrent(q, k, v, log_w, S)
    for a, b in ((nothing, given["b"]), (given["a"], nothing)):
        assert_close(channel_chunkwise(q, k, v, a, b, log_w, S, chunk_size=16), wanted, rtol=1e-10, atol=1e-12)


def test_rwkv6_reads_what_gla_would_have_read_a_token_before():
    given = inputs()
    q, k, v, log_w, S = (given[n] for n in ["q", "k", "v", "log_w", "S"])
    y, end = rwkv6_chunkwise(q, k, v, torch.zeros(H, K, dtype=F64), log_w, S, chunk_size=16)
    for t in range(T):
        before = gla_recurrent(q[:, :, :t], k[:, :, :t], v[:, :, :t], log_w[:, :, :t], S)[1] if t else S
        assert_close(y[:, :, t], (q[:, :, t, None] @ before)[:, :, 0], rtol=1e-10, atol=1e-12)
    assert_close(end, gla_recurrent(q, k, v, log_w, S)[1], rtol=1e-10, atol=1e-12)


def test_orthonormal_keys_written_with_beta_one_are_recalled_exactly():
    k = torch.linalg.qr(torch.randn(1, 1, 16, 16, dtype=F64))[0]
    v, nothing = torch.randn(1, 1, 16, 3, dtype=F64), torch.zeros(1, 1, 16, 16, dtype=F64)
    _, S = kda_chunkwise(k, k, v, torch.ones(1, 1, 16, dtype=F64), nothing, torch.zeros(1, 1, 16, 3, dtype=F64), chunk_size=8)
    assert_close(k @ S, v, rtol=1e-12, atol=1e-12)


def test_an_overwritten_key_gives_the_new_value_and_without_erasing_the_sum():
    k = F.normalize(torch.randn(1, 1, 1, 8, dtype=F64), dim=-1).repeat(1, 1, 2, 1)
    v, ones, kept = torch.randn(1, 1, 2, 3, dtype=F64), torch.ones(1, 1, 2, dtype=F64), torch.zeros(1, 1, 2, 8, dtype=F64)
    nothing = torch.zeros(1, 1, 8, 3, dtype=F64)
    assert_close(kda_chunkwise(k, k, v, ones, kept, nothing)[0][:, :, 1], v[:, :, 1], rtol=1e-12, atol=1e-12)
    assert_close(gla_chunkwise(k, k, v, kept, nothing)[0][:, :, 1], v.sum(2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", [0.0, -1e-6, -30.0, -1e4, -torch.inf])
@pytest.mark.parametrize("form", FORMS)
def test_gates_at_their_limits_are_exact_and_finite(form, gate):
    recurrent, chunkwise, names = FORMS[form]
    given = inputs()
    given["log_w"] = torch.where(torch.rand(B, H, T, K) < 0.5, gate, given["log_w"])
    given = {name: t.requires_grad_() for name, t in given.items()}
    wanted, found = read(recurrent, names, given, given["S"]), read(chunkwise, names, given, given["S"], chunk_size=16)
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    sources = [given[name] for name in [*names.split(), "S"] if gate > -torch.inf or name != "log_w"]
    for f, w in zip(*(torch.autograd.grad(out[0].sum() + out[1].sum(), sources) for out in (found, wanted)), strict=True):
        assert bool(f.isfinite().all())
        assert_close(f, w, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
@pytest.mark.parametrize("form", FORMS)
def test_float32_stays_within_its_written_error(form, chunk_size):
    recurrent, chunkwise, names = FORMS[form]
    for gates in (0.01, 30.0):
        exact = inputs(T=300, K=32, V=16, gates=gates, B=1)
        low = {name: t.float().requires_grad_() for name, t in exact.items()}
        exact = {name: t.detach().double().requires_grad_() for name, t in low.items()}
        wanted, found = read(recurrent, names, exact, exact["S"]), read(chunkwise, names, low, low["S"], chunk_size=chunk_size)
        for f, w in zip(found, wanted, strict=True):
            assert relative(f, w) < 1e-6
        every = [*names.split(), "S"]
        grads = [torch.autograd.grad(out[0].sum() + out[1].sum(), [g[n] for n in every]) for out, g in ((found, low), (wanted, exact))]
        for f, w, name in zip(*grads, every, strict=True):
            assert relative(f, w) < (2e-5 if name == "log_w" else 2e-6), name


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
def test_one_key_written_again_and_again_with_beta_one(chunk_size):
    k = F.normalize(torch.randn(1, 1, 1, 64, dtype=F64), dim=-1).repeat(1, 1, 256, 1)
    v, beta = torch.randn(1, 1, 256, 32, dtype=F64), torch.ones(1, 1, 256, dtype=F64)
    kept, S = torch.zeros(1, 1, 256, 64, dtype=F64), torch.zeros(1, 1, 64, 32, dtype=F64)
    low = kda_chunkwise(k.float(), k.float(), v.float(), beta.float(), kept.float(), S.float(), chunk_size=chunk_size)
    assert relative(low[0], v) < 2e-6  # each read gives the newest value


@pytest.mark.parametrize("form", FORMS)
def test_inputs_rounded_to_bfloat16_cost_their_rounding_and_no_more(form):
    recurrent, chunkwise, names = FORMS[form]
    given = inputs(T=200, K=32, V=16, B=1)
    wanted = read(recurrent, names, given, given["S"])
    low = {name: t.float() if name in ("log_w", "S") else t.bfloat16() for name, t in given.items()}
    found = read(chunkwise, names, low, low["S"], chunk_size=64)
    assert found[0].dtype == torch.float32
    assert relative(found[0], wanted[0]) < 5e-3


def test_recurrent_arithmetic_is_float32_under_autocast():
    given = inputs(dtype=torch.float32)
    for recurrent, chunkwise, names in FORMS.values():
        wanted = read(chunkwise, names, given, given["S"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for form in (recurrent, chunkwise):
                found = read(form, names, given, given["S"])
                assert found[0].dtype == found[1].dtype == torch.float32
                assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_nothing_given_is_written_to():
    given = inputs()
    before = {name: t.clone() for name, t in given.items()}
    for recurrent, chunkwise, names in FORMS.values():
        read(recurrent, names, given, given["S"])
        read(chunkwise, names, given, given["S"], chunk_size=16)
    for name, t in given.items():
        assert_close(t, before[name], rtol=0, atol=0)

"""Prefix softmax: every form against the rows of a plain softmax, at any score, from any past."""

import random

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.attention import NOTHING
from memseq.ops.attention import merge as merge_attention
from memseq.ops.prefix_softmax import (
    Sums,
    join,
    prefix_softmax_chunkwise,
    prefix_softmax_last,
    prefix_softmax_recurrent,
    prefix_softmax_scan,
    prefix_softmax_step,
)

F64 = torch.float64
B, G, T, V = 2, 3, 71, 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def nothing(dtype=F64):
    return Sums(torch.full((B, G), NOTHING, dtype=dtype), torch.zeros(B, G, dtype=dtype), torch.zeros(B, G, V, dtype=dtype))


def something():
    """The sums of nine tokens."""
    s, v = torch.randn(B, G, 9, dtype=F64), torch.randn(B, G, 9, V, dtype=F64)
    return prefix_softmax_recurrent(s, v, nothing())[1]


def by_rows(s, v):
    """The definition of the definition: softmax over the scores up to t, for each t."""
    rows = s[..., None, :].expand(*s.shape, s.shape[-1]).masked_fill(~torch.ones(s.shape[-1], s.shape[-1]).tril().bool(), -torch.inf)
    return rows.softmax(-1) @ v


def by_steps(s, v, past, log_a=None):
    o = []
    for t in range(s.shape[-1]):
        mean, past = prefix_softmax_step(s[..., t], v[..., t, :], past, log_a=None if log_a is None else log_a[..., t])
        o.append(mean)
    return torch.stack(o, dim=-2), past


FORMS = {
    "recurrent": prefix_softmax_recurrent,
    "steps": by_steps,
    "scan": prefix_softmax_scan,
    **{f"chunks of {L}": lambda *x, L=L: prefix_softmax_chunkwise(*x, chunk_size=L) for L in (1, 7, 16, 64, 128, T)},
}


def everything(form, s, v, past, *gates):
    """Means, sums, and the gradients of a number that depends on all of them."""
    leaves = [t.clone().requires_grad_() for t in (s, v, past.u, past.w, *gates)]
    o, sums = form(leaves[0], leaves[1], Sums(past.m, *leaves[2:4]), *leaves[4:])
    values = [o, *sums]
    generator = torch.Generator().manual_seed(3)
    total = sum((t * torch.randn(t.shape, generator=generator, dtype=F64).to(t.dtype)).sum() for t in (o, sums.u, sums.w))
    return [t.detach() for t in values] + list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_softmax_over_each_prefix(form, scale):
    s, v = scale * torch.randn(B, G, T, dtype=F64), torch.randn(B, G, T, V, dtype=F64)
    assert_close(FORMS[form](s, v, nothing())[0], by_rows(s, v), **EXACT)


@pytest.mark.parametrize("past", [nothing, something], ids=["from nothing", "from a past"])
@pytest.mark.parametrize("form", [name for name in FORMS if name != "recurrent"])
def test_every_form_has_the_values_and_gradients_of_the_definition(form, past):
    s, v, past = 3 * torch.randn(B, G, T, dtype=F64), torch.randn(B, G, T, V, dtype=F64), past()
    for found, wanted in zip(everything(FORMS[form], s, v, past), everything(prefix_softmax_recurrent, s, v, past), strict=True):
        assert_close(found, wanted, **EXACT)


def test_the_gradient_is_that_of_attention():
    s, v, weight = (torch.randn(B, G, T, *n, dtype=F64) for n in ((), (V,), (V,)))
    leaves = [t.requires_grad_() for t in (s, v)]
    ways = [prefix_softmax_chunkwise(s, v, nothing())[0], by_rows(s, v)]
    for found, wanted in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in ways), strict=True):
        assert_close(found, wanted, **EXACT)


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 600, 1, 500], [512, 512, 1]], ids=str)
def test_pieces_carry_on_from_the_sums(pieces):
    n = sum(pieces)
    s, v = torch.randn(1, 2, n, dtype=F64), torch.randn(1, 2, n, V, dtype=F64)
    empty = Sums(torch.full((1, 2), NOTHING, dtype=F64), torch.zeros(1, 2, dtype=F64), torch.zeros(1, 2, V, dtype=F64))
    past, o = empty, []
    for a, b in zip(s.split(pieces, -1), v.split(pieces, -2), strict=True):
        means, past = prefix_softmax_chunkwise(a, b, past)
        o.append(means)
    assert_close(torch.cat(o, dim=-2), by_rows(s, v), **EXACT)


def test_huge_scores_and_a_late_jump_lose_nothing_in_float32():
    """The jump makes all that came before weigh nothing; what was read before it is as exact as ever."""
    s, v = 1e4 * torch.randn(B, G, T), torch.randn(B, G, T, V)
    s[..., -3] = s.max() + 1e4
    exact = everything(prefix_softmax_recurrent, s.double(), v.double(), nothing())
    for form in FORMS.values():
        for found, wanted in zip(everything(form, s, v, nothing(torch.float32)), exact, strict=True):
            assert bool(found.isfinite().all())
            assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_equal_scores_are_a_running_mean():
    v = torch.randn(B, G, T, V, dtype=F64)
    o, sums = prefix_softmax_chunkwise(torch.full((B, G, T), 123.0, dtype=F64), v, nothing())
    assert_close(o, v.cumsum(-2) / torch.arange(1, T + 1)[:, None], **EXACT)
    assert_close(sums.u, torch.full((B, G), float(T), dtype=F64), **EXACT)


def test_a_million_alike_count_as_a_million():
    """The reason why the maximum and the sum are kept apart: in float32 a log of the sum stands still before."""
    o, sums = prefix_softmax_chunkwise(torch.zeros(1, 1, 1_000_000), torch.ones(1, 1, 1_000_000, 1), Sums(*(t[:1, :1] for t in tiny())))
    assert float(sums.u) == 1_000_000
    assert_close(o, torch.ones_like(o))


def tiny():
    return torch.full((1, 1), NOTHING), torch.zeros(1, 1), torch.zeros(1, 1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_joining_is_associative_in_any_bracketing(seed):
    """Shards of a stream, joined in a random tree, are the stream; nothing is a zero of it."""
    choice = random.Random(seed)
    s, v = 100 * torch.randn(B, G, T, dtype=F64), torch.randn(B, G, T, V, dtype=F64)
    cuts = sorted(choice.sample(range(1, T), 9))
    shards = [prefix_softmax_chunkwise(a, b, nothing())[1] for a, b in zip(s.tensor_split(cuts, -1), v.tensor_split(cuts, -2), strict=True)]
    while len(shards) > 1:
        i = choice.randrange(len(shards) - 1)
        shards[i : i + 2] = [join(shards[i], shards[i + 1])]
    for found, wanted in zip(join(nothing(), shards[0]), prefix_softmax_recurrent(s, v, nothing())[1], strict=True):
        assert_close(found, wanted, **EXACT)


def test_joining_is_the_merge_of_attention():
    """`ops/attention.py` merges (o, lse); here the same is (w / u, m + log u)."""
    a, b = something(), something()
    both = join(a, b)
    views = [(p.w / p.u[..., None], p.m + p.u.log()) for p in (a, b, both)]
    o, lse = merge_attention(views[0][0][..., None, :], views[0][1][..., None], views[1][0][..., None, :], views[1][1][..., None])
    assert_close(o[..., 0, :], views[2][0], **EXACT)
    assert_close(lse[..., 0], views[2][1], **EXACT)


@pytest.mark.parametrize("past", [nothing, something], ids=["from nothing", "from a past"])
def test_a_gate_multiplies_every_earlier_weight(past):
    n, past = 600, past()  # longer than what is worked on at once
    s, v, a = torch.randn(B, G, n, dtype=F64), torch.randn(B, G, n, V, dtype=F64), F.logsigmoid(torch.randn(B, G, n, dtype=F64))
    for form in (lambda s, v, p, a: prefix_softmax_chunkwise(s, v, p, log_a=a), by_steps):
        wanted = everything(lambda s, v, p, a: prefix_softmax_recurrent(s, v, p, log_a=a), s, v, past, a)
        for found, want in zip(everything(form, s, v, past, a), wanted, strict=True):
            assert_close(found, want, rtol=1e-10, atol=1e-11)


def test_the_definition_with_a_gate_is_a_softmax_of_faded_scores():
    s, v, a = torch.randn(B, G, T, dtype=F64), torch.randn(B, G, T, V, dtype=F64), F.logsigmoid(torch.randn(B, G, T, dtype=F64))
    o, _ = prefix_softmax_recurrent(s, v, nothing(), log_a=a)
    for t in (0, 1, 30, T - 1):
        faded = torch.stack([s[..., i] + a[..., i + 1 : t + 1].sum(-1) for i in range(t + 1)], dim=-1)
        assert_close(o[..., t, :], (faded.softmax(-1)[..., None] * v[..., : t + 1, :]).sum(-2), **EXACT)


@pytest.mark.parametrize("gated", [False, True])
def test_the_sums_alone_are_those_after_the_last_token(gated):
    s, x, past = torch.randn(B, G, T, dtype=F64), torch.randn(B, T, V, dtype=F64), something()
    a = F.logsigmoid(torch.randn(B, G, T, dtype=F64)) if gated else None
    m, kept, weight, total = prefix_softmax_last(s, x, past.m, log_a=a)
    _, wanted = prefix_softmax_recurrent(s, x[:, None].expand(B, G, T, V), past, log_a=a)
    for found, want in zip((m, kept * past.u + weight, kept[..., None] * past.w + total), wanted, strict=True):
        assert_close(found, want, **EXACT)

"""Attention and its parts: a merge of parts is the whole, fast forms are their definitions, in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.attention import NOTHING, attend, attention_with_lse, attention_with_lse_definition, band, merge, windowed
from memseq.ops.relative import relative_shift, relative_shift_definition, sinusoids

F64 = torch.float64


def qkv(T=5, S=9, B=2, H=3, K=8, dtype=F64):
    sizes = ((B, H, T, K), (B, H, S, K), (B, H, S, K))
    return tuple(torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes)


def one_by_one(q, k, v, sees):
    """Attention as the formula reads: query i over the keys j with sees(i, j)."""
    B, H, T, K = q.shape
    o = torch.zeros(B, H, T, K, dtype=q.dtype)
    for i in range(T):
        js = [j for j in range(k.shape[2]) if sees(i, j)]
        weights = torch.stack([(q[:, :, i] * k[:, :, j]).sum(-1) / math.sqrt(K) for j in js], dim=-1).softmax(-1)
        o[:, :, i] = sum(weights[..., n, None] * v[:, :, j] for n, j in enumerate(js))
    return o


@pytest.mark.parametrize("window", [1, 2, 5, 9, 40, None])
@pytest.mark.parametrize("T", [1, 4, 9])
def test_a_band_is_itself_and_the_window_before_it(window, T):
    q, k, v = qkv(T=T, S=9)
    expected = one_by_one(q, k, v, lambda i, j: 0 <= 9 - T + i - j < (window or 99))
    assert_close(attend(q, k, v, mask=band(T, 9, window, device=q.device)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("window", "block", "T"), [(1, 1, 7), (3, 3, 11), (3, 4, 20), (4, 3, 12), (5, 16, 40), (6, 6, 18)])
def test_blocks_of_a_window_equal_one_masked_product(window, block, T):
    q, k, v = qkv(T=T, S=T)
    whole = attend(q, k, v, mask=band(T, T, window, device=q.device))
    assert_close(windowed(q, k, v, start=block, window=window, block=block), whole[:, :, block:], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("form", [attention_with_lse, attention_with_lse_definition])
@pytest.mark.parametrize("cut", [1, 4, 8])
def test_merged_parts_are_the_whole(form, cut):
    q, k, v = qkv()
    o, lse = merge(*form(q, k[:, :, :cut], v[:, :, :cut]), *form(q, k[:, :, cut:], v[:, :, cut:]))
    expected = one_by_one(q, k, v, lambda i, j: True)
    assert_close(o, expected, rtol=1e-12, atol=1e-14)
    assert_close(lse, (q @ k.mT / math.sqrt(8)).logsumexp(-1), rtol=1e-12, atol=1e-14)
    seed = torch.randn_like(o)
    for found, wanted in zip(
        torch.autograd.grad((o * seed).sum(), (q, k, v)), torch.autograd.grad((expected * seed).sum(), (q, k, v)), strict=True
    ):
        assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_a_merge_is_associative_and_commutes():
    q, k, v = qkv(S=9)
    a, b, c = (attention_with_lse(q, k[:, :, part], v[:, :, part]) for part in (slice(0, 2), slice(2, 7), slice(7, 9)))
    expected = merge(*merge(*a, *b), *c)
    for other in (merge(*a, *merge(*b, *c)), merge(*c, *merge(*b, *a)), merge(*merge(*c, *a), *b)):
        for found, wanted in zip(other, expected, strict=True):
            assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 9), (2, 1, 5, 9), (2, 3, 5, 9)])
def test_attention_with_lse_is_its_definition_also_for_queries_that_see_nothing(shape):
    q, k, v = qkv()
    mask = torch.rand(shape) < 0.5
    mask[..., 2, :] = False
    (o, lse), (o_def, lse_def) = attention_with_lse(q, k, v, mask=mask), attention_with_lse_definition(q, k, v, mask=mask)
    assert (o[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == NOTHING).all()
    assert_close(o, o_def, rtol=1e-12, atol=1e-14)
    assert_close(lse, lse_def, rtol=1e-12, atol=1e-14)
    seeds = torch.randn_like(o), torch.randn_like(lse)
    found = torch.autograd.grad((o * seeds[0]).sum() + (lse * seeds[1]).sum(), (q, k, v))
    wanted = torch.autograd.grad((o_def * seeds[0]).sum() + (lse_def * seeds[1]).sum(), (q, k, v))
    for a, b in zip(found, wanted, strict=True):
        assert b.isfinite().all()
        assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_a_part_that_is_not_seen_changes_nothing():
    q, k, v = qkv()
    blind = attention_with_lse(q, k, v, mask=torch.zeros(5, 9, dtype=torch.bool))
    seen = attention_with_lse(q, k, v)
    for merged in (merge(*blind, *seen), merge(*seen, *blind)):
        for found, wanted in zip(merged, seen, strict=True):
            assert_close(found, wanted, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(merge(*blind, *blind)[0].sum(), q)
    assert (grad == 0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_lower_precision_stays_near_float64(dtype, tolerance):
    q, k, v = (t.detach() for t in qkv(T=64, S=64, K=16))
    o, lse = attention_with_lse(*(t.to(dtype) for t in (q, k, v)))
    exact_o, exact_lse = attention_with_lse_definition(*(t.to(dtype).to(F64) for t in (q, k, v)))
    assert lse.dtype == torch.float32
    assert_close(o.to(F64), exact_o, rtol=tolerance, atol=tolerance)
    assert_close(lse.to(F64), exact_lse, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=tolerance)


@pytest.mark.parametrize(
    ("T", "S", "R"), [(1, 1, 1), (1, 7, 7), (4, 4, 4), (3, 9, 9), (4, 9, 6), (4, 9, 2), (5, 5, 1), (3, 4, 9), (1, 6, 2)]
)
def test_the_relative_shift_is_a_gather_by_distance(T, S, R):
    scores = torch.randn(2, 3, T, R, dtype=F64, requires_grad=True)
    expected = torch.zeros(2, 3, T, S, dtype=F64)
    for i in range(T):
        for j in range(S):
            if 0 <= S - T + i - j < R:
                expected[:, :, i, j] = scores[:, :, i, R - 1 - (S - T + i - j)]
    causal = band(T, S, None, device=scores.device)
    assert_close(relative_shift_definition(scores, S), expected, rtol=0, atol=0)
    assert_close(relative_shift(scores, S), expected, rtol=0, atol=0)
    weights = torch.randn(2, 3, T, S, dtype=F64) * causal
    grads = [torch.autograd.grad((form(scores, S) * weights).sum(), scores)[0] for form in (relative_shift, relative_shift_definition)]
    assert_close(*grads, rtol=0, atol=0)


def test_sinusoids_keep_their_digits_at_far_distances():
    table = sinusoids(torch.tensor([0, 3, 1_000_000]), 6)
    for row, d in zip(table, (0, 3, 1_000_000), strict=True):
        w = [10000 ** (-2 * k / 6) for k in range(3)]
        expected = torch.tensor([math.sin(d * f) for f in w] + [math.cos(d * f) for f in w], dtype=F64)
        assert_close(row, expected, rtol=0, atol=1e-9)

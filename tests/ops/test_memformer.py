"""Slot attention and forgetting: the running form is the definition, and the laws of the paper hold."""

import math

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.memformer import (
    NOTHING,
    biased_normalise,
    close_slots,
    gather_tokens,
    read_lifted,
    read_projected,
    split_heads,
    write_slots,
)

F64 = torch.float64
B, N, H, K, L = 2, 3, 2, 4, 7
D = H * K


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64)


@pytest.fixture
def parts() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"slots": randn(B, N, D), "q": randn(B, H, N, K), "k": randn(B, H, N, K), "keys": randn(B, H, L, K), "values": randn(B, H, L, K)}


def in_pieces(parts: dict[str, torch.Tensor], cuts: list[int], temperature: float, keep_bias: float = 0.0) -> torch.Tensor:
    peak = torch.full((B, H, N), NOTHING, dtype=F64)
    mass, total = torch.zeros(B, H, N, dtype=F64), torch.zeros(B, H, N, K, dtype=F64)
    scale = math.sqrt(K) * temperature
    for keys, values in zip(parts["keys"].split(cuts, 2), parts["values"].split(cuts, 2), strict=True):
        peak, mass, total = gather_tokens(parts["q"] @ keys.mT / scale, values, peak, mass, total)
    own = (parts["q"] * parts["k"]).sum(-1) / scale + keep_bias
    return close_slots(parts["slots"], own, peak, mass, total)


@pytest.mark.parametrize("cuts", [[7], [1] * 7, [2, 5], [6, 1]], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.01])
def test_the_running_softmax_is_slot_attention(parts: dict[str, torch.Tensor], cuts: list[int], temperature: float) -> None:
    """Values and gradients, however the segment is cut."""
    leaves = {name: value.requires_grad_() for name, value in parts.items()}
    definition = write_slots(
        leaves["slots"], leaves["q"], leaves["k"], leaves["keys"], leaves["values"], temperature=temperature, keep_bias=0.3
    )
    running = in_pieces(leaves, cuts, temperature, keep_bias=0.3)
    assert_close(running, definition, rtol=1e-12, atol=1e-13)
    weight = randn(B, N, D)
    expected = torch.autograd.grad((definition * weight).sum(), list(leaves.values()))
    got = torch.autograd.grad((running * weight).sum(), list(leaves.values()))
    assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_a_slot_that_wins_against_all_tokens_is_returned_bit_for_bit(parts: dict[str, torch.Tensor]) -> None:
    assert torch.equal(in_pieces(parts, [7], temperature=1e-4, keep_bias=1e9), parts["slots"])


def test_slots_never_see_each_other(parts: dict[str, torch.Tensor]) -> None:
    before = in_pieces(parts, [7], 0.25)
    moved = {name: value.clone() for name, value in parts.items()}
    moved["slots"][:, 1] += 1
    moved["q"][:, :, 1] += 1
    after = in_pieces(moved, [7], 0.25)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(after[:, 1], before[:, 1])


def test_slots_have_no_order(parts: dict[str, torch.Tensor]) -> None:
    order = torch.tensor([2, 0, 1])
    turned = parts | {"slots": parts["slots"][:, order], "q": parts["q"][:, :, order], "k": parts["k"][:, :, order]}
    assert_close(in_pieces(turned, [7], 0.25), in_pieces(parts, [7], 0.25)[:, order], rtol=1e-12, atol=0)


@pytest.mark.parametrize("radius", [1.0, 8.0])
@pytest.mark.parametrize("length", [0.1, 1.15, 3.2])
def test_forgetting_follows_the_angle_law(radius: float, length: float) -> None:
    """The angle to the bias goes from a to atan2(sin a, cos a + |v| / R), and halves near its end in ln 2 / ln(1 + r) segments."""
    torch.manual_seed(1)
    bias = torch.nn.functional.normalize(randn(N, D), dim=-1) * length
    slots = torch.nn.functional.normalize(randn(B, N, D), dim=-1) * radius

    def angle(x: torch.Tensor) -> torch.Tensor:
        along = (x * bias).sum(-1) / length
        return torch.atan2((x - along[..., None] * bias / length).norm(dim=-1), along)

    r, a = length / radius, angle(slots)
    assert_close(angle(biased_normalise(slots, bias, radius=radius)), torch.atan2(a.sin(), a.cos() + r), rtol=1e-10, atol=1e-12)
    near = bias * radius / length + 1e-6 * randn(B, N, D)
    near = near * radius / near.norm(dim=-1, keepdim=True)
    assert_close(
        angle(biased_normalise(near, bias, radius=radius)) / angle(near), torch.full((B, N), 1 / (1 + r), dtype=F64), rtol=1e-5, atol=0
    )


def test_a_slot_opposite_to_its_bias_stays_finite() -> None:
    bias = randn(N, D)
    slots = -bias[None].expand(B, -1, -1)
    out = biased_normalise(slots, bias, radius=1.0)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("reach", [None, [1, 3]], ids=["all", "some"])
def test_both_orders_of_reading_agree(reach: list[int] | None) -> None:
    """Few tokens carry their queries to the slots, many project the slots: the same sums in another order."""
    torch.manual_seed(2)
    q, slots, wk, wv = randn(B, H, 5, K), randn(B, N, D), randn(D, D), randn(D, D)
    seen = None if reach is None else torch.tensor(reach)
    k, v = split_heads(slots @ wk.T, H), split_heads(slots @ wv.T, H)
    many, few = read_projected(q, k, v, seen), read_lifted(q, slots, wk, wv, seen)
    assert_close(few, many, rtol=1e-12, atol=1e-12)
    logits = q @ k.mT / math.sqrt(K)
    if seen is not None:
        logits = logits.masked_fill(torch.arange(N) >= seen[:, None, None, None], -torch.inf)
    assert_close(many, (logits.softmax(-1) @ v).transpose(1, 2).flatten(2), rtol=1e-12, atol=1e-12)

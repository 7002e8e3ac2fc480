"""Routing: the grid found again token by token, and the balance against Switch's."""

import pytest
import torch
from torch.testing import assert_close

from memseq.ops.routing import balance, choose_memories, gather, one_hot

F64 = torch.float64


def routing(B=3, T=23, E=5, k=2, *, sharp=1.0):
    p = (sharp * torch.randn(B, T, E, dtype=F64)).softmax(-1)
    chosen, weight = choose_memories(p, k)
    return p, chosen, weight, one_hot(chosen, E)


def test_the_likeliest_are_chosen_and_weighted_by_their_share():
    p, chosen, weight, routed = routing()
    assert_close(weight.sum(-1), torch.ones(3, 23, dtype=F64), rtol=1e-12, atol=0)
    for b in range(3):
        for t in range(23):
            best = sorted(range(5), key=lambda m: -p[b, t, m])[:2]
            assert chosen[b, t].tolist() == best
            assert routed[b, t].nonzero()[:, 0].tolist() == sorted(best)
            assert_close(weight[b, t, 0] / weight[b, t, 1], p[b, t, best[0]] / p[b, t, best[1]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("multiple", [1, 4, 16, 64])
@pytest.mark.parametrize("sharp", [0.1, 30.0])
def test_a_row_of_the_grid_holds_its_tokens_in_their_order(multiple, sharp):
    _, chosen, _, routed = routing(sharp=sharp)
    routed[1, :, 2] = False  # and a memory that nothing goes to
    chosen[1][chosen[1] == 2] = 4
    routed[1, :, 4] = True
    grid = gather(chosen, routed, multiple=multiple)
    longest = int(routed.sum(1).max())
    assert grid.source.shape[-1] == min(23, -(-longest // multiple) * multiple)
    for b in range(3):
        for m in range(5):
            tokens = routed[b, :, m].nonzero()[:, 0]
            assert int(grid.filled[b, m].sum()) == len(tokens)
            assert (grid.source[b, m, : len(tokens)] - b * 23).tolist() == tokens.tolist()
            assert bool((grid.source[b, m] // 23 == b).all())  # an empty place shows a token of its own stream
    for b in range(3):
        for t in range(23):
            for slot in range(2):
                at = int(grid.place[b, t, slot])
                assert int(grid.source.flatten()[at]) == b * 23 + t
                assert at // grid.source.shape[-1] == b * 5 + int(chosen[b, t, slot])


def test_the_balance_is_the_sum_over_the_stream_however_it_is_cut():
    p, _, _, routed = routing()
    whole, load = balance(p, routed, torch.zeros(3, 5, dtype=F64), 2)
    expected = torch.zeros(3, dtype=F64)
    for t in range(23):
        share = routed[:, : t + 1].double().mean(1)  # f_m(t), which adds up to k
        assert_close(share.sum(-1), torch.full((3,), 2.0, dtype=F64), rtol=1e-12, atol=0)
        expected = expected + 5 * (share * p[:, t]).sum(-1)
    assert_close(whole, expected, rtol=1e-12, atol=0)
    assert_close(load, routed.sum(1).double(), rtol=0, atol=0)
    first, after = balance(p[:, :9], routed[:, :9], torch.zeros(3, 5, dtype=F64), 2)
    second, end = balance(p[:, 9:], routed[:, 9:], after, 2)
    assert_close(first + second, whole, rtol=1e-12, atol=0)
    assert_close(end, load, rtol=0, atol=0)


def test_where_the_load_is_settled_the_gradient_is_that_of_switch():
    p, _, _, routed = routing()
    p, load = p.requires_grad_(), 1e9 * torch.tensor([0.1, 0.5, 0.4, 0.6, 0.4], dtype=F64).expand(3, 5)
    ours = torch.autograd.grad(balance(p, routed, load, 2)[0].sum(), p)[0]
    switch = 5 * (load[0] / 1e9 * p.mean((0, 1))).sum() * p[..., 0].numel()  # E sum_m f_m P_m, for every token
    assert_close(ours, torch.autograd.grad(switch, p)[0], rtol=1e-6, atol=0)


def test_an_even_load_costs_least():
    even = torch.full((1, 8, 4), 0.25, dtype=F64)
    routed = torch.tensor([[0, 1], [2, 3], [1, 0], [3, 2], [0, 2], [1, 3], [2, 0], [3, 1]])[None]
    settled = torch.full((1, 4), 1e9, dtype=F64)
    assert_close(balance(even, one_hot(routed, 4), settled, 2)[0], torch.tensor([8 * 2.0], dtype=F64), rtol=1e-6, atol=0)
    one_sided = torch.tensor([0.97, 0.01, 0.01, 0.01], dtype=F64).expand(1, 8, 4)
    collapsed = 1e9 * torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=F64)
    assert float(balance(one_sided, one_hot(torch.zeros_like(routed), 4), collapsed, 2)[0]) > 8 * 3.5

"""The head's loss in chunks equals the loss of the whole table, and holds one chunk at a time."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from memseq.ops.cross_entropy import linear_cross_entropy


def test_chunks_change_neither_loss_nor_gradients() -> None:
    torch.manual_seed(0)
    h, weight = (torch.randn(n, 8, dtype=torch.float64, requires_grad=True) for n in (37, 50))
    targets = torch.randint(0, 50, (37,))
    targets[[3, 36]] = -100
    expected = F.cross_entropy(h @ weight.T, targets, reduction="sum")
    for at_once in (50, 120, 1 << 20):
        loss = linear_cross_entropy(h, weight, targets, logits_at_once=at_once)
        assert_close(loss, expected, rtol=1e-12, atol=0)
        assert_close(
            torch.autograd.grad(loss, (h, weight)), torch.autograd.grad(expected, (h, weight), retain_graph=True), rtol=1e-10, atol=1e-12
        )


def test_no_tensor_of_tokens_by_words_is_kept_for_the_backward_pass() -> None:
    h, weight = torch.randn(512, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        linear_cross_entropy(h, weight, torch.zeros(512, dtype=torch.long), logits_at_once=16_000)
    assert max(sizes) < 512 * 1000 / 10


def test_a_row_of_ignored_targets_costs_nothing() -> None:
    h = torch.randn(3, 4, requires_grad=True)
    loss = linear_cross_entropy(h, torch.randn(5, 4), torch.full((3,), -100))
    loss.backward()
    assert loss.item() == 0.0
    assert h.grad is not None
    assert not h.grad.any()

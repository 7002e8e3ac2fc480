"""RepeatPrevious and Autoencode: labels and decks, found again card by card."""

import pytest
import torch

from memseq.errors import ConfigError
from memseq.tasks.popgym import AutoencodeTask, RepeatPreviousTask
from memseq.tasks.task import IGNORE


@pytest.mark.parametrize("task", [RepeatPreviousTask(), RepeatPreviousTask(k=32, n_cards=104), RepeatPreviousTask(k=2, dealt=False)])
def test_the_label_is_the_kth_last_card(task):
    batch = task.sample(20, 0)
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        for t, label in enumerate(labels):
            hand = inputs[: t + 1]
            assert label == (hand[-task.k] if len(hand) >= task.k else IGNORE)


@pytest.mark.parametrize("task", [AutoencodeTask(), AutoencodeTask(n_cards=6, n_suits=3), AutoencodeTask(n_cards=16, dealt=False)])
def test_the_deck_is_said_backwards_and_never_shown_again(task):
    batch = task.sample(20, 0)
    n, suits = task.n_cards, task.n_suits
    for inputs, labels in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
        watched = inputs[: n - 1]
        assert all(card < suits for card in watched)
        assert suits <= inputs[n - 1] < 2 * suits
        assert inputs[n:] == [suits] * (n - 1)
        hand = [*watched, inputs[n - 1] - suits]
        assert labels[: n - 1] == [IGNORE] * (n - 1)
        assert labels[n - 1 :] == [hand.pop() for _ in range(n)]


@pytest.mark.parametrize("task", [RepeatPreviousTask(), AutoencodeTask()])
def test_a_dealt_deck_holds_every_suit_equally_often(task):
    shown = task.sample(50, 3).inputs[:, :52] % 4
    assert all(row.bincount(minlength=4).tolist() == [13] * 4 for row in shown)


def test_every_order_of_a_deck_is_as_likely():
    hands = RepeatPreviousTask(k=2, n_cards=4, n_suits=2).sample(12_000, 0).inputs
    counts = (hands * torch.tensor([8, 4, 2, 1])).sum(1).bincount(minlength=16).double()
    assert sorted(counts.nonzero().flatten().tolist()) == [3, 5, 6, 9, 10, 12]
    kept = counts[counts > 0]
    assert float(((kept - 2000) ** 2 / 2000).sum()) < 22.1  # chi-square, 5 degrees of freedom, 0.05 %


def test_the_published_sizes():
    assert [RepeatPreviousTask(k=k, n_cards=n).length for k, n in ((4, 52), (32, 104), (64, 156))] == [52, 104, 156]
    assert AutoencodeTask().length == 103


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RepeatPreviousTask(k=1), "k=1 would ask for the card on show"),
        (lambda: RepeatPreviousTask(k=60), "to n_cards=52"),
        (lambda: RepeatPreviousTask(n_cards=50), "such as 48, or dealt=False"),
        (lambda: AutoencodeTask(n_cards=1, dealt=False), "n_cards=1 is no list"),
        (lambda: AutoencodeTask(n_suits=1), "n_suits=1 leaves nothing to guess"),
    ],
)
def test_bad_decks_are_refused_in_words(make, said):
    with pytest.raises(ConfigError, match=said):
        make()

"""The order of what was read: bins, boundaries, balance and evenness, on a synthetic text and on a real book."""

import gzip
import random
from collections import Counter

import pytest
import torch

from memseq.errors import ConfigError, InputError
from memseq.tasks.order import OrderTask, bin_edges, even_pvalue, order_questions, same_pvalue, sentence_starts


def made_text(n_words=60_000, seed=0):
    chance = random.Random(seed)
    words = [f"w{i}" for i in range(n_words)]  # all distinct, so that a string search is an oracle
    at = 0
    while at < n_words:
        words[at] += chance.choice([".", "!", "?", ";"])
        at += chance.randint(3, 25)
    return " ".join(words)


def check(questions, excerpt_length, segment_length, n):
    edges = bin_edges(excerpt_length, segment_length)
    assert Counter(q.bin for q in questions) == dict.fromkeys(edges[1:], n)
    lower = dict(zip(edges[1:], edges, strict=False))
    for q in questions:
        distance = q.later_place - q.earlier_place
        assert lower[q.bin] < distance <= q.bin
        assert distance > segment_length  # never overlap
        assert q.earlier == q.excerpt[q.earlier_place : q.earlier_place + segment_length]
        assert q.later == q.excerpt[q.later_place : q.later_place + segment_length]
        assert len(q.earlier) == len(q.later) == segment_length
        starts = sentence_starts(q.excerpt)
        assert q.earlier_place in starts
        assert q.later_place in starts
    for upper in edges[1:]:  # a constant player is right exactly half of the time
        assert sum(q.earlier_first for q in questions if q.bin == upper) * 2 == n
    assert len({q.excerpt_place for q in questions if q.bin == edges[1]} | {q.excerpt_place for q in questions}) <= n


@pytest.mark.parametrize("seed", range(3))
def test_questions_keep_every_rule(seed):
    text = made_text()
    questions = order_questions(text, n=110, seed=seed)
    check(questions, 250, 20, 110)
    span = 60_000 - 250
    assert even_pvalue([q.excerpt_place / span for q in questions[:110]]) > 0.01
    for q in questions:  # the oracle that searches the excerpt
        first, second = (q.excerpt.index(segment[0]) for segment in q.presented)
        assert (first < second) == q.earlier_first


def test_long_excerpts_have_their_own_bins():
    assert bin_edges(250, 20) == [20, 62, 83, 125, 200]
    assert bin_edges(10_000, 50) == [50, 1000, 2500, 5000, 8000]
    check(order_questions(made_text(), excerpt_length=5000, segment_length=50, n=20, extra=10), 5000, 50, 20)


def test_a_book(data_dir):
    book = next((data_dir / "books").glob("jane-austen_pride*.gz"))
    text = gzip.decompress(book.read_bytes()).decode()
    check(order_questions(text, n=50, seed=1), 250, 20, 50)


def test_the_same_seed_asks_the_same():
    text = made_text(5000)
    assert order_questions(text, n=10, extra=20, seed=4) == order_questions(text, n=10, extra=20, seed=4)
    assert order_questions(text, n=10, extra=20, seed=4) != order_questions(text, n=10, extra=20, seed=5)


def test_sentences_end_at_marks_and_not_at_titles():
    words = ["Mr.", "Hill", "said;", "no!", "Then", "Dr.", "Foe", "left.", "So"]
    assert sentence_starts(words) == [0, 3, 4, 8]


def test_evenness_is_told_from_unevenness():
    grid = [(i + 0.5) / 100 for i in range(100)]
    assert even_pvalue(grid) > 0.99
    assert even_pvalue([x / 2 for x in grid]) < 1e-6
    assert same_pvalue(grid, grid) > 0.99
    assert same_pvalue(grid, [x**3 for x in grid]) < 1e-4
    chance = random.Random(0)
    rejected = sum(even_pvalue([chance.random() for _ in range(50)]) < 0.05 for _ in range(1000))
    assert 25 < rejected < 80  # 5 %


def test_without_the_excerpt_nothing_is_told():
    task = OrderTask(shown=False)
    batch = task.sample(50, 0)
    assert bool((batch.inputs[:, : task.n_read] == task.n_tokens).all())
    with pytest.raises(ConfigError, match="shown=True"):
        task.oracle(batch.inputs)


def test_questions_are_about_what_was_read_and_half_are_yes():
    task = OrderTask(n_read=6, n_tokens=20, n_asked=4)
    batch = task.sample(4000, 0)
    pairs = batch.inputs[:, 7:].unflatten(1, (4, 3))
    assert bool((pairs[..., 2] == 21).all())
    assert bool((pairs[..., 0] != pairs[..., 1]).all())
    assert bool((pairs[..., :2, None] == batch.inputs[:, None, None, :6]).any(-1).all())
    asked = batch.labels[batch.labels >= 0]
    assert set(asked.tolist()) == {22, 23}
    assert abs(float((asked == 23).double().mean()) - 0.5) < 0.02
    assert set(torch.unique(batch.slices["distance"]).tolist()) == {-1, 1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: order_questions("a b. c"), InputError, "the text has 3 words"),
        (lambda: order_questions("word " * 5000), InputError, "no even set of 110 excerpts"),
        (lambda: bin_edges(60, 20), ConfigError, "excerpts of 60 words hold no bins"),
        (lambda: OrderTask(n_tokens=5), ConfigError, "n_read=12 distinct tokens"),
        (lambda: OrderTask(n_read=1), ConfigError, "asks nothing"),
    ],
)
def test_what_cannot_be_asked_is_said(call, error, says):
    with pytest.raises(error, match=says):
        call()

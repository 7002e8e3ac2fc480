"""What holds for every task: determinism, disjoint splits, exact oracles, chance as computed, segments as cut."""

import pytest
import torch

from memseq.errors import ConfigError, InputError
from memseq.tasks import TASKS, make_task, task_class
from memseq.tasks.task import IGNORE, choose_distinct

CASES = [
    ("recall", {}),
    ("recall", {"n_segments": 2, "n_noise": 0}),
    ("recall", {"n_segments": 64, "segment_length": 5}),
    ("recall_overwritten", {}),
    ("recall_overwritten", {"n_segments": 7, "n_writes": 4, "n_symbols": 2}),
    ("recall_overwritten", {"n_segments": 2, "n_keys": 1, "n_writes": 0}),
    ("recall_overwritten", {"n_noise": 0, "n_segments": 12, "n_writes": 1}),
    ("recall_horizon", {"n_tokens": 32, "n_keys": 20}),
    ("recall_horizon", {"n_tokens": 64, "horizon": 8, "n_keys": 3, "n_values": 2}),
    ("copy", {}),
    ("copy", {"n_source": 1, "repeats": 3}),
    ("reverse", {}),
    ("selective_copy", {}),
    ("selective_copy", {"n_tokens": 8, "n_source": 8, "n_symbols": 2}),
    ("selective_copy", {"scattered": False, "n_tokens": 20}),
    ("induction", {}),
    ("induction", {"n_tokens": 3, "n_symbols": 7}),
    ("parity", {"n_bits": 8}),
    ("parity", {"n_bits": 3, "most": 20}),
    ("delayed_match", {"n_bits": 9}),
    ("mqar", {}),
    ("mqar", {"n_pairs": 16, "vocabulary": 34, "power": 1.0}),
    ("mqar", {"n_pairs": 8, "random_fill": True, "vocabulary": 64}),
    ("mqar", {"n_pairs": 5, "readings": 3}),
    ("mqar", {"n_pairs": 8, "readings": 2, "random_fill": True}),
    ("interleaved_recall", {}),
    ("interleaved_recall", {"n_topics": 1, "topic_tokens": 4, "n_values": 5}),
    ("topics", {}),
    ("topics", {"n_topics": 3, "n_asked": 2, "n_before": 1, "n_keys": 3, "n_values": 5}),
    ("dialogue", {}),
    ("dialogue", {"n_turns": 30, "reach": 4, "n_keys": 5, "n_values": 3, "n_chatter": 0}),
    ("dialogue", {"reach": 3, "n_facts": 3, "n_chatter": 0}),
    ("delayed_meaning", {}),
    ("delayed_meaning", {"n_names": 5, "n_phrases": 5, "n_asked": 2, "n_between": 3, "n_meanings": 6}),
    ("set_disjointness", {}),
    ("set_disjointness", {"n_first": 16, "n_second": 4}),
    ("set_disjointness", {"n_first": 3, "n_second": 3, "vocabulary": 10, "readings": 2}),
    ("repeat_previous", {}),
    ("repeat_previous", {"k": 32, "n_cards": 104}),
    ("repeat_previous", {"k": 2, "n_suits": 3, "n_cards": 10, "dealt": False}),
    ("autoencode", {}),
    ("autoencode", {"n_cards": 17, "dealt": False}),
    ("passkey", {}),
    ("passkey", {"n_filler": 0}),
    ("needle", {}),
    ("needle", {"haystack": "text", "n_keys": 4, "value": "uuid"}),
    ("needle", {"haystack": "text", "n_values": 4, "n_chars": 900}),
    ("needle", {"haystack": "needles", "n_keys": 4, "n_asked": 4, "value": "word", "n_chars": 1500}),
    ("variable_tracking", {}),
    ("variable_tracking", {"haystack": "text", "n_chains": 3, "n_hops": 2}),
    ("order", {}),
    ("order", {"n_read": 2, "n_tokens": 2, "n_asked": 1}),
    ("babi", {}),
    ("babi", {"qa": 2, "n_chars": 2048}),
    ("babi", {"qa": 3, "n_chars": 4096}),
    ("passkey_depth", {}),
    ("passkey_depth", {"n_blocks": 1, "n_depths": 2}),
    ("passkey_words", {}),
    ("passkey_words", {"n_words": 38}),
]
TOLD_BYTE_BY_BYTE = {"passkey", "passkey_depth", "needle", "variable_tracking", "babi"}
tasks = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)


def equal(a, b):
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.labels, b.labels)


@tasks
def test_a_sample_is_a_function_of_its_seed(name, settings):
    torch.manual_seed(1)
    a = make_task(name, **settings).sample(8, 3)
    torch.manual_seed(2)
    b = make_task(name, **settings).sample(8, 3)
    assert equal(a, b)
    assert all(torch.equal(a.slices[k], b.slices[k]) for k in a.slices)


@tasks
def test_seeds_and_splits_never_meet(name, settings):
    task = make_task(name, **settings)
    seeds = [(seed, split) for seed in range(25) for split in ("train", "test")]
    numbers = [task.generator(*pair).initial_seed() for pair in seeds]
    assert len(set(numbers)) == len(numbers)
    assert all(n % 2 == (split == "test") for n, (_, split) in zip(numbers, seeds, strict=True))
    batches = [task.sample(16, *pair).inputs for pair in seeds]
    assert not any(torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])


@tasks
def test_the_oracle_is_always_right(name, settings):
    task = make_task(name, **settings)
    for seed in range(5):
        batch = task.sample(200, seed, "test")
        scores = task.metric(task.oracle(batch.inputs), batch)
        assert set(scores.values()) == {1.0}, scores
        assert len(scores) > 2


@tasks
def test_shapes_and_ranges(name, settings):
    task = make_task(name, **settings)
    batch = task.sample(50, 0)
    assert batch.inputs.shape == batch.labels.shape == (50, task.length)
    assert batch.inputs.dtype == batch.labels.dtype == torch.int64
    asked = batch.labels[batch.labels != IGNORE]
    assert len(asked) > 0
    for tokens in (batch.inputs, asked):
        assert int(tokens.min()) >= 0
        assert int(tokens.max()) < task.vocab_size


@pytest.mark.parametrize(("name", "settings"), [case for case in CASES if case[0] not in TOLD_BYTE_BY_BYTE], ids=str)
def test_no_player_without_memory_beats_chance(name, settings):
    """The best player that sees only the present token and its position, found on half of the samples, asked on the other.

    Answers of several bytes are told by the bytes said before as well, so theirs is tested beside their tasks.
    """
    task = make_task(name, **settings)
    seen, asked = task.sample(3000, 0), task.sample(3000, 1)
    T, V = task.length, task.vocab_size
    counts = torch.zeros(T * V, V, dtype=torch.int64)
    at = seen.inputs + V * torch.arange(T)
    scored = seen.labels != IGNORE
    counts.index_put_((at[scored], seen.labels[scored]), torch.tensor(1), accumulate=True)
    answers = counts.argmax(-1)[asked.inputs + V * torch.arange(T)]
    accuracy = task.metric(answers, asked)["accuracy"]
    n = int((asked.labels != IGNORE).sum())
    assert abs(accuracy - task.chance) < 4 * (task.chance / n) ** 0.5 + 0.005


@tasks
@pytest.mark.parametrize("length", [1, 12, 17, 10_000])
def test_segments_are_the_batch_cut(name, settings, length):
    task = make_task(name, **settings)
    batch = task.sample(3, 0)
    pieces = batch.segments(length)
    assert torch.equal(torch.cat([p.tokens for p in pieces], dim=1), batch.inputs)
    assert torch.equal(torch.cat([p.targets for p in pieces], dim=1), batch.labels)
    assert [bool(p.reset.all()) for p in pieces] == [True] + [False] * (len(pieces) - 1)
    assert all(p.tokens.shape[1] == length for p in pieces[:-1])


def test_the_metric_counts_by_hand():
    task = make_task("recall")
    batch = task.sample(2, 0)
    labels = torch.tensor([[IGNORE, 3, 4], [5, IGNORE, IGNORE]])
    batch = batch._replace(labels=labels, slices={"row": torch.tensor([7, 8]), "place": torch.tensor([[-1, 0, 1], [0, -1, -1]])})
    said = torch.tensor([[9, 3, 0], [5, 1, 1]])
    expected = {
        "accuracy": 2 / 3,
        "exact": 0.5,
        "accuracy/row=7": 0.5,
        "accuracy/row=8": 1.0,
        "accuracy/place=0": 1.0,
        "accuracy/place=1": 0.0,
    }
    assert task.metric(said, batch) == expected
    assert task.metric(torch.nn.functional.one_hot(said, 10).float(), batch) == expected


def test_draws_without_replacement_have_their_weights():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    drawn = choose_distinct(40_000, 2, 3, torch.Generator().manual_seed(0), p.log())
    assert bool((drawn[:, 0] != drawn[:, 1]).all())
    for first in range(3):
        for second in set(range(3)) - {first}:
            share = float(((drawn[:, 0] == first) & (drawn[:, 1] == second)).double().mean())
            assert abs(share - float(p[first] * p[second] / (1 - p[first]))) < 0.01


def test_every_task_is_listed_under_its_own_name():
    for name in TASKS:
        assert task_class(name).name == name
        assert task_class(name).source


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make_task("recal"), ConfigError, "did you mean 'recall'"),
        (lambda: make_task("recall", n_segment=3), ConfigError, "did you mean 'n_segments'"),
        (lambda: make_task("recall").sample(1, 0, "tset"), ConfigError, "did you mean 'test'"),
        (lambda: make_task("recall").sample(0, 0), ConfigError, "batch_size=0"),
        (lambda: make_task("recall").sample(1, -1), ConfigError, "seed=-1"),
        (lambda: make_task("recall").sample(1, 2**62), ConfigError, "must lie in"),
        (lambda: make_task("recall").sample(1, 0).segments(0), ConfigError, "length=0"),
        (lambda: make_task("recall").metric(torch.zeros(1, 3), make_task("recall").sample(1, 0)), InputError, r"shape \[1, 3\]"),
        (lambda: make_task("recall", n_segments=1), ConfigError, "n_segments=1"),
        (lambda: make_task("recall", n_shown=12), ConfigError, "use segment_length=13"),
        (lambda: make_task("recall_overwritten", n_keys=7), ConfigError, "use segment_length=14"),
        (lambda: make_task("recall_overwritten", n_writes=5), ConfigError, "n_writes=5"),
        (lambda: make_task("copy", repeats=0), ConfigError, "repeats=0"),
        (lambda: make_task("mqar", n_tokens=63), ConfigError, "n_tokens=63 must be even"),
        (lambda: make_task("mqar", n_pairs=17), ConfigError, "4 n_pairs=68"),
        (lambda: make_task("mqar", vocabulary=8), ConfigError, "use at least 10"),
        (lambda: make_task("mqar", power=0.0), ConfigError, "power=0.0"),
        (lambda: make_task("mqar", readings=0), ConfigError, "readings=0"),
        (lambda: make_task("mqar", n_pairs=16, readings=2), ConfigError, "6 n_pairs=96"),
        (lambda: make_task("interleaved_recall", n_keys=7), ConfigError, "use at least 8"),
        (lambda: make_task("interleaved_recall", n_asked=33), ConfigError, "the 32 that are shown"),
        (lambda: make_task("interleaved_recall", topic_tokens=3), ConfigError, "cannot mark n_topics=4"),
        (lambda: make_task("interleaved_recall", n_values=1), ConfigError, "n_values=1"),
        (lambda: make_task("delayed_meaning", n_phrases=0), ConfigError, "n_phrases=0"),
        (lambda: make_task("delayed_meaning", n_phrases=9), ConfigError, "n_meanings=8; use n_phrases=8"),
        (lambda: make_task("delayed_meaning", n_asked=13), ConfigError, "n_names=12; use n_asked=12"),
        (lambda: make_task("set_disjointness", n_first=0), ConfigError, "n_first=0"),
        (lambda: make_task("set_disjointness", vocabulary=23), ConfigError, "use at least 24"),
        (lambda: make_task("passkey", n_filler=-1), ConfigError, "n_filler=-1"),
        (lambda: make_task("passkey_words", n_words=36), ConfigError, "use at least 37"),
        (lambda: make_task("passkey_depth", n_blocks=0), ConfigError, "n_blocks=0"),
        (lambda: make_task("passkey_depth", n_depths=1), ConfigError, "n_depths=1"),
    ],
)
def test_errors_say_what_was_given(call, error, words):
    with pytest.raises(error, match=words):
        call()

"""Mixtures of repeated text: counts, the share, no unique row twice, and runs that were cut."""

import numpy as np
import pytest

from memseq.errors import ConfigError, DataError
from memseq.tasks.repeated import Mixture, Place


@pytest.mark.parametrize(("share", "epochs"), [(0.1, 1), (0.1, 100), (0.5, 7), (0.5, 5000)])
def test_pool_rows_are_read_equally_often_at_any_time(share, epochs):
    mixture, place = Mixture(n_rows=10_000, share=share, epochs=epochs, seed=3), Place()
    counts, seen = np.zeros(mixture.pool_size, dtype=int), []
    while place.row < 10_000:
        rows, place = mixture.take(700, place)
        counts += np.bincount(rows.index[rows.repeated], minlength=mixture.pool_size)
        assert counts.max() - counts.min() <= 1
        seen += rows.index[~rows.repeated].tolist()
    assert seen == list(range(len(seen)))  # each once, in order
    assert counts.sum() == place.repeated
    assert counts.sum() + len(seen) == place.row
    assert abs(place.repeated - share * place.row) < 4 * (share * (1 - share) * place.row) ** 0.5
    assert abs(counts.mean() / epochs - 1) < 0.1


def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been():
    mixture = Mixture(n_rows=1000, share=0.3, epochs=13)
    whole, end = mixture.take(1000)
    first, place = mixture.take(333)
    second, after = mixture.take(667, Place(*place))
    assert after == end
    for one, two in zip(whole, zip(first, second, strict=True), strict=True):
        assert np.array_equal(one, np.concatenate(two))


def test_repetition_changes_the_pool_alone():
    few, many = (Mixture(n_rows=2000, share=0.2, epochs=epochs).take(2000)[0] for epochs in (1, 100))
    assert np.array_equal(few.repeated, many.repeated)
    assert np.array_equal(few.index[~few.repeated], many.index[~many.repeated])
    assert len(set(many.index[many.repeated])) == 4
    pool = Mixture(n_rows=2000, share=0.2, epochs=1).pool_size
    assert len(set(few.index[few.repeated])) == min(pool, int(few.repeated.sum()))


def test_orders_of_the_pool_differ_from_time_to_time_and_by_seed():
    def orders(seed):
        rows, _ = Mixture(n_rows=4000, share=0.5, epochs=20, seed=seed).take(4000)
        return rows.index[rows.repeated][:300].reshape(3, 100)

    one, two = orders(0), orders(1)
    assert all(sorted(order) == list(range(100)) for order in (*one, *two))
    assert not any(np.array_equal(a, b) for a, b in [(one[0], one[1]), (one[1], one[2]), (one[0], two[0])])


def test_rows_of_text_are_different_and_belong_to_one_side():
    ids = np.random.default_rng(0).integers(0, 256, size=50_000)
    documents = (ids, ids[:1000], np.zeros(500, dtype=np.int64))  # the second says again what the first said
    mixture = Mixture(n_rows=1000, share=0.5, epochs=25)
    pool, once = mixture.split(documents, 50)
    assert len(pool) == 20
    assert len(np.unique(np.concatenate([pool, once]), axis=0)) == len(pool) + len(once) == 1001
    rows, _ = mixture.take(100)
    found = mixture.read(rows, pool, once)
    assert np.array_equal(found[rows.repeated], pool[rows.index[rows.repeated]])
    assert np.array_equal(found[~rows.repeated], once[: int((~rows.repeated).sum())])
    with pytest.raises(DataError, match="rows to be read once"):
        mixture.read(rows, pool, once[:10])
    with pytest.raises(DataError, match="cut it with `split`"):
        mixture.read(rows, pool[:10], once)
    with pytest.raises(DataError, match="different rows of 50 tokens"):
        mixture.split((ids[:600],), 50)


def test_no_share_repeats_nothing():
    rows, _ = Mixture(n_rows=100, share=0.0).take(100)
    assert not rows.repeated.any()
    assert rows.index.tolist() == list(range(100))


@pytest.mark.parametrize(
    ("fields", "says"), [({"n_rows": 0}, "reads nothing"), ({"share": 1.5}, "0 to 1"), ({"epochs": 0.5}, "use 1 or more")]
)
def test_a_mixture_that_makes_no_sense_says_why(fields, says):
    with pytest.raises(ConfigError, match=says):
        Mixture(**{"n_rows": 10} | fields)

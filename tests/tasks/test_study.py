"""What is studied and its foils: equal study sets, one word apart, the same letters; scores of known answers."""

import random
from collections import Counter

import pytest

from memseq.errors import InputError
from memseq.tasks.study import KINDS, recognised, rouge, study_pairs

WORDS = [a + b + c for a in "bdfgklm" for b in "aeiou" for c in "nrst"]


def sentences(n=80):
    chance = random.Random(0)
    return [" ".join(chance.sample(WORDS, 7)).capitalize() + "." for _ in range(n)]


def pairs(kind, n=30, seed=1):
    return study_pairs(kind, sentences(), n, seed=seed)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_a_function_of_their_seed_and_share_nothing(kind):
    assert pairs(kind) == pairs(kind) != pairs(kind, seed=2)
    assert len({pair.seen for pair in pairs(kind)}) == 30
    assert not {pair.seen for pair in pairs(kind)} & {pair.foil for pair in pairs(kind)}


def test_kinds_that_are_studied_together_are_the_same_texts():
    assert [p.seen for p in pairs("sentence")] == [p.seen for p in pairs("word")]
    assert [p.seen for p in pairs("words")] == [p.seen for p in pairs("against")]
    assert {p.foil for p in pairs("against")} <= set(sentences())


def test_one_word_is_changed_for_another_of_its_length():
    for seen, foil in pairs("word"):
        apart = [(a, b) for a, b in zip(seen.split(), foil.split(), strict=True) if a != b]
        assert len(apart) == 1
        assert len(seen) == len(foil)
        assert foil[0].isupper()
        assert foil.endswith(".")


def test_gibberish_has_the_letters_of_its_sentence_word_by_word():
    for seen, foil in pairs("gibberish"):
        assert Counter("".join(sorted(w)) for w in seen.split()) == Counter("".join(sorted(w)) for w in foil.split())
        assert seen != foil


def test_scores_of_known_answers():
    assert recognised([1.0, 2.0, 3.0, 1.0], [2.0, 2.0, 1.0, 4.0]) == 0.5  # a tie is no recognition
    assert rouge(list("abcd"), list("abcd")) == 1.0
    assert rouge(list("abxd"), list("abcd")) == pytest.approx(1 / 3)
    assert rouge(list("dcba"), list("abcd")) == 0.0
    assert rouge(["a"], ["a"]) == 0.0
    assert rouge(list("abab"), list("ab"), n=1) == pytest.approx(2 * 2 / 6)


def test_too_little_text_is_told():
    with pytest.raises(InputError, match="30 pairs need 60"):
        study_pairs("sentence", sentences(40), 30)
    with pytest.raises(InputError, match="can be changed"):
        study_pairs("word", ["a b.", "c d.", "e f.", "g h."], 2)

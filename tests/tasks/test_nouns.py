"""Noun lists: every noun at every place, and conditions that are what they say."""

from collections import Counter

import pytest

from memseq.errors import ConfigError, InputError
from memseq.tasks.nouns import CONDITIONS, NOUNS, noun_lists, read_nouns, read_scenes, stimulus


def words(text, spans):
    return [text[start:end].strip() for start, end in spans]


def test_every_noun_stands_once_at_every_place_and_bases_share_none():
    lists = noun_lists()
    assert len(lists) == 10
    for base in lists:
        assert all(sorted(turn) == sorted(base[0]) for turn in base)
        for noun in base[0]:
            assert Counter(turn.index(noun) for turn in base) == dict.fromkeys(range(10), 1)
    assert len({noun for base in lists for noun in base[0]}) == 100


@pytest.mark.parametrize("size", [2, 3, 5, 10])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_conditions_are_what_they_say(condition, size):
    lists = noun_lists()
    for base in range(10):
        for turn in range(10):
            made = stimulus(lists, base, turn, condition, size=size, between=turn % 4)
            first, second = words(made.text, made.first), words(made.text, made.second)
            assert first == list(lists[base][turn][:size])
            assert {"repeat": second == first, "permute": second != first and sorted(second) == sorted(first)}.get(
                condition, not set(second) & set(first)
            )
            assert made.text.endswith(f" {second[-1]}.")
            assert made.first[-1][1] < made.second[0][0]


def test_our_own_nouns_are_plain_words():
    assert len(NOUNS) == len(set(NOUNS)) >= 110
    assert all(word.isascii() and word.isalpha() and word.islower() for word in NOUNS)


def test_the_published_nouns_and_scenes_are_read(data_dir):
    nouns = read_nouns(data_dir / "verbatim" / "nouns_arbitrary.txt")
    assert len(nouns) == 478
    lists = noun_lists(nouns, n_base=23)
    assert len(lists) * len(lists[0]) == 230
    scenes = read_scenes(data_dir / "verbatim" / "vignettes.json")
    scene = scenes["sce1"]
    assert len(scene.between) == 5
    made = stimulus(lists, 3, 4, "repeat", size=7, scene=scene, between=4)
    assert made.text.startswith(scene.preface)
    assert words(made.text, made.second) == list(lists[3][4][:7])


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda p: noun_lists(n_base=100), ConfigError, "100 lists of 10 need 1000 nouns"),
        (lambda p: noun_lists(n_base=1), ConfigError, "make no control"),
        (lambda p: stimulus(noun_lists(), 0, 0, "repeat", size=11), ConfigError, "size=11 must lie in 2 to 10"),
        (lambda p: stimulus(noun_lists(), 0, 0, "repeat", size=3, between=4), ConfigError, "between=4 must lie in 0 to 3"),
        (lambda p: read_nouns(p / "none"), InputError, "cannot be read"),
        (lambda p: read_nouns(p / "bad"), InputError, "is no list of nouns"),
        (lambda p: read_scenes(p / "bad"), InputError, "holds no scenes"),
    ],
)
def test_bad_input_is_told(tmp_path, call, error, says):
    (tmp_path / "bad").write_text("1 2 3\n")
    with pytest.raises(error, match=says):
        call(tmp_path)

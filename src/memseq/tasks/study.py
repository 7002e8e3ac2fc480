"""Texts to be studied a few times, each with a foil: which of the two was seen, and how does it go on?

Source: Orhan, "Recognition, recall, and retention of few-shot memories in large language models" (arXiv:2303.17557).

    kind         seen                                            foil
    sentence     a sentence                                      another sentence
    word         the same                                        the seen one with one word changed for another of its length
    words        words drawn at random                           others
    against      the same                                        a sentence: likelier for whoever saw neither
    gibberish    a sentence, letters mixed in every word,        that sentence
                 then the words

`sentence` and `word` are studied together, and so are `words` and `against`: what is seen is equal. The source's paraphrases take a
large model to write and are left out. Recognised: a mean loss a token below the foil's; a tie is no recognition. Recalled: what follows
the first half.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from memseq.errors import ConfigError, InputError

__all__ = ["KINDS", "Kind", "Pair", "recognised", "rouge", "study_pairs"]

Kind = Literal["sentence", "word", "words", "against", "gibberish"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Pair(NamedTuple):
    seen: str
    foil: str


def study_pairs(kind: Kind, sentences: Sequence[str], n: int, *, seed: int = 0, n_words: int = 12) -> list[Pair]:
    """`n` pairs of a kind, from 2 n different sentences. Raises `InputError` where there are too few."""
    if kind not in KINDS:
        raise ConfigError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    known = sorted(set(sentences))
    if len(known) < 2 * n:
        raise InputError(f"there are {len(known)} different sentences; {n} pairs need {2 * n}")
    chance = random.Random(seed)
    drawn = chance.sample(known, 2 * n)
    first, second = drawn[:n], drawn[n:]
    vocabulary = sorted({word for sentence in known for word in map(_plain, sentence.split()) if len(word) > 2 and word.isalpha()})
    if kind == "sentence":
        return [Pair(*pair) for pair in zip(first, second, strict=True)]
    if kind == "word":
        return [Pair(sentence, _one_word_changed(sentence, vocabulary, chance)) for sentence in first]
    if kind == "gibberish":
        return [Pair(_mixed(sentence, chance), sentence) for sentence in first]
    if len(vocabulary) < n_words:
        raise InputError(f"the sentences have {len(vocabulary)} different words and a text takes {n_words}; use more sentences")
    listed = [" ".join(chance.sample(vocabulary, n_words)) for _ in range(2 * n)]
    return [Pair(*pair) for pair in zip(listed[:n], listed[n:] if kind == "words" else first, strict=True)]


def _plain(word: str) -> str:
    return word.lower().strip(".,;:!?'\"()")


def _one_word_changed(sentence: str, vocabulary: Sequence[str], chance: random.Random) -> str:
    """Another word of the same length where there is one, of any length where there is none; what is not letters stays around it."""
    words = sentence.split()
    long = [i for i, word in enumerate(words) if len(_plain(word)) > 2 and _plain(word).isalpha()]
    if not long:
        raise InputError(f"no word of {sentence!r} can be changed; use sentences with words of three letters or more")
    i = chance.choice(long)
    old = _plain(words[i])
    others = [word for word in vocabulary if word != old]
    fitting = [word for word in others if len(word) == len(old)] or others
    if not fitting:
        raise InputError("the sentences have a single word; use more of them")
    at = words[i].lower().find(old)
    new = chance.choice(fitting)
    new = new.capitalize() if words[i][at].isupper() else new
    words[i] = words[i][:at] + new + words[i][at + len(old) :]
    return " ".join(words)


def _mixed(sentence: str, chance: random.Random) -> str:
    """Letters in every word, then the words."""
    words = ["".join(chance.sample(word, len(word))) for word in sentence.split()]
    return " ".join(chance.sample(words, len(words)))


def recognised(seen: Sequence[float], foil: Sequence[float]) -> float:
    """The share of pairs whose seen text has the lower loss."""
    return sum(a < b for a, b in zip(seen, foil, strict=True)) / len(seen)


def rouge(said: Sequence[str], wanted: Sequence[str], n: int = 2) -> float:
    """ROUGE-n: F of the runs of n words that two texts share. Texts too short for a run share nothing."""
    one, two = (Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for words in (said, wanted))
    shared = sum((one & two).values())
    return 2 * shared / (sum(one.values()) + sum(two.values())) if shared else 0.0

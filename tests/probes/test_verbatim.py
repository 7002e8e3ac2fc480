"""Repeat surprisal of players whose memory is known: none, of words without their order, and word for word."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.probes import Subject
from memseq.probes.verbatim import VerbatimProbe, median_with_error, word_surprisals
from memseq.tasks.nouns import noun_lists, stimulus
from memseq.tasks.tokenizers import Bytes


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 256
    d_model: int = 4


class Held(NamedTuple):
    tokens: Tensor  # [B, n] + 1, newest last; 0 where nothing was read


class Player(Memory):
    """Gives 0.99 to one byte, by what it holds; or knows nothing."""

    def __init__(self, kind):
        super().__init__()
        self.config, self.kind, self.weight = Config(), kind, nn.Parameter(torch.zeros(1))

    def check_input(self, x, state):
        assert x.ndim == 2

    def init_state(self, batch_size):
        return Held(torch.zeros(batch_size, 1200))

    def forward(self, tokens, state):
        said, held = [], state.tokens
        for token in tokens.unbind(1):
            held = torch.cat([held[:, 1:], token[:, None] + 1.0], dim=1)
            said.append(torch.stack([self.guess(bytes(int(t) - 1 for t in row[row > 0])) for row in held]))
        return torch.stack(said, dim=1), Held(held)

    def advance(self, tokens, state):
        return Held(torch.cat([state.tokens, tokens + 1.0], dim=1)[:, -1200:])

    def guess(self, past):
        logits = torch.zeros(256)
        reach = {"nothing": None, "verbatim": 6, "words": 3}[self.kind]
        if reach:  # what followed the last `reach` bytes when they came before
            at = past.rfind(past[-reach:], 0, len(past) - 1)
            if at >= 0 and len(past) > reach:
                logits[past[at + reach]] = math.log(255 * 99)
        return logits


def subject(kind):
    return Subject(name=kind, model=Player(kind), tokenizer=Bytes())


def run(kind, **settings):
    return VerbatimProbe(samples=6, sizes=(5,), between=(0,), **settings).run(subject(kind))


def test_without_memory_every_list_surprises_as_at_first():
    found = run("nothing")
    assert found["repeat"]["ratio"] == [[pytest.approx(100.0, abs=1e-4)]]
    for condition in ("permute", "control"):  # other nouns, or another first one, which is left out, have other lengths
        assert 80 < found[condition]["ratio"][0][0] < 125


def test_word_for_word_memory_knows_order_and_nouns():
    found = run("verbatim")
    assert found["repeat"]["ratio"][0][0] < 1
    assert found["permute"]["ratio"][0][0] > 60  # another order is another text
    course = found["time_course"]["repeat"]
    assert course[0] > 8  # nothing calls the first noun
    assert max(course[1:]) < 1


def test_memory_of_words_helps_in_any_order():
    found = run("words")
    assert found["permute"]["ratio"][0][0] < 75 < found["control"]["ratio"][0][0]


def test_surprisal_is_counted_in_the_words_and_the_spaces_before_them():
    texts = [stimulus(noun_lists(), 0, turn, "repeat", size=3) for turn in range(3)]
    first, second = word_surprisals(subject("nothing"), texts)
    lengths = torch.tensor([[end - start for start, end in text.first] for text in texts])
    torch.testing.assert_close(first, lengths.double() * math.log(256), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(first, second)


def test_the_median_and_its_interval():
    values = torch.arange(101.0)
    middle, low, high = median_with_error(values, torch.Generator().manual_seed(0))
    assert middle == 50
    assert 25 < low < 45
    assert 55 < high < 75


def test_a_model_without_a_tokenizer_is_told():
    assert "needs a tokenizer" in VerbatimProbe().unmet(Subject(name="x", model=Player("nothing")))

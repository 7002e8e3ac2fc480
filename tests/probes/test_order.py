"""The order of what was read, asked of players whose memory is known: one token, nothing, and a finger that only moves forwards."""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.memories.gru import GRUConfig
from memseq.models.stack import StackConfig
from memseq.probes import Subject
from memseq.probes.order import OrderProbe, order_scores
from memseq.probes.scoring import Scorer
from memseq.tasks.tokenizers import Bytes

SMALL = {"excerpt_length": 60, "segment_length": 5, "samples": 6}


def text(n_words=600, seed=0):
    chance = random.Random(seed)
    words = [f"{i:03d}" for i in range(n_words)]
    chance.shuffle(words)
    at = 0
    while at < n_words:
        words[at] += "."
        at += chance.randint(2, 5)
    return " ".join(words).encode()


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 256
    d_model: int = 4


class Held(NamedTuple):
    tokens: Tensor  # [B, n] + 1, newest last; 0 where nothing was read


class Player(Memory):
    def __init__(self, kind):
        super().__init__()
        self.config, self.kind, self.weight = Config(), kind, nn.Parameter(torch.zeros(1))
        self.table = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))

    def check_input(self, x, state):
        assert x.ndim == 2

    def init_state(self, batch_size):
        return Held(torch.zeros(batch_size, 400))

    def step(self, tokens, state):
        held = torch.cat([state.tokens[:, 1:], tokens[:, None] + 1.0], dim=1)
        if self.kind == "one token":
            return self.table[tokens], Held(held)
        return torch.stack([self.guess(bytes(int(t) - 1 for t in row[row > 0])) for row in held]), Held(held)

    def forward(self, tokens, state):
        said = []
        for token in tokens.unbind(1):
            logits, state = self.step(token, state)
            said.append(logits)
        return torch.stack(said, dim=1), state

    def advance(self, tokens, state):
        return Held(torch.cat([state.tokens, tokens + 1.0], dim=1)[:, -400:])

    def guess(self, past):
        """The finger: pieces lie in the excerpt, the second behind the first."""
        logits = torch.zeros(256)
        excerpt, *pieces = past.split(b"\n")
        if self.kind == "finger" and excerpt and pieces:
            at = 0
            for piece in pieces[:-1]:
                at = excerpt.find(piece, at) + len(piece) if excerpt.find(piece, at) >= 0 else len(excerpt)
            found = excerpt.find(pieces[-1], at) if pieces[-1] else -1
            if 0 <= found < len(excerpt) - len(pieces[-1]):
                logits[excerpt[found + len(pieces[-1])]] = math.log(255 * 99)
        return logits


def subject(model, data=None):
    ids = np.frombuffer(text() if data is None else data, dtype=np.uint8)
    return Subject(name="player", model=model, tokenizer=Bytes(), documents=(ids,))


def test_without_memory_read_and_unread_are_equal_and_a_coin():
    for kind in ("one token", "nothing"):
        found = OrderProbe(**SMALL).run(subject(Player(kind)))
        assert found["read"] == found["unread"] == 0.5
        assert found["gain"] == found["gain_error"] == 0.0
        assert all(b["read"] == b["unread"] == 0.5 for b in found["bins"])


def test_a_finger_on_the_excerpt_is_always_right_and_without_it_a_coin():
    found = OrderProbe(**SMALL).run(subject(Player("finger")))
    assert found["read"] == 1.0
    assert found["read_error"] == 0.0
    assert found["unread"] == 0.5
    assert found["gain"] == 0.5
    assert [b["up_to"] for b in found["bins"]] == [15, 20, 30, 48]
    assert [b["read"] for b in found["bins"]] == 4 * [1.0]
    assert found["questions"] == 24
    assert abs(found["slope_per_100_words_apart"]) + abs(found["slope_per_100_words_ago"]) < 1e-9
    assert "100% of pairs when it has read the excerpt, 50% when it has not" in found["says"][0]["answer"]


def test_a_fork_of_the_state_is_as_good_as_reading_again():
    torch.manual_seed(0)
    model = StackConfig(vocab_size=256, d_model=16, layers=(GRUConfig(d_model=16),)).build().eval()
    with torch.no_grad():
        model.embedding.weight.mul_(8)
    asked = OrderProbe(**SMALL).questions(subject(model))[::3]
    forked = order_scores(Scorer(model, Bytes()), asked)

    def again(q, order):
        start, pieces = " ".join(q.excerpt), "\n" + "".join(" ".join(words) + "\n" for words in order)
        ids = torch.tensor([list((start + pieces).encode())])
        log_p = model(ids, model.init_state(1))[0].log_softmax(-1)
        own = log_p[0, len(start.encode()) - 1 : -1].gather(-1, ids[0, len(start.encode()) :, None])
        return own.double().sum().item()

    with torch.no_grad():
        wanted = [again(q, (q.earlier, q.later)) - again(q, (q.later, q.earlier)) for q in asked]
    assert max(map(abs, wanted)) > 1e-3  # it is not all the same
    sizes = [abs(again(q, (q.earlier, q.later))) for q in asked]
    for found, right, size in zip(forked, wanted, sizes, strict=True):
        assert abs(found - right) < 1e-5 * max(1.0, size)


def test_what_is_missing_is_said():
    player = Player("nothing")
    assert "needs a tokenizer" in OrderProbe().unmet(Subject(name="x", model=player))
    assert "needs more text" in OrderProbe().unmet(subject(player, b"too short to be asked."))
    short = Subject(name="x", model=player, tokenizer=Bytes(), documents=subject(player).documents, longest=100)
    assert "needs a model that can read" in OrderProbe(**SMALL).unmet(short)
    with pytest.raises(ConfigError, match="must be white space"):
        OrderProbe(separator="/")


def test_parts_are_put_together_whatever_their_number():
    probe, one = OrderProbe(**SMALL | {"samples": 10}), subject(Player("one token"))
    assert probe.parts(one) == ["excerpts 0 to 7", "excerpts 8 to 9"]
    rows = [row for part in probe.parts(one) for row in probe.measure(one, part)["rows"]]
    assert sorted((row["excerpt"], row["bin"]) for row in rows) == [(i, b) for i in range(10) for b in (15, 20, 30, 48)]

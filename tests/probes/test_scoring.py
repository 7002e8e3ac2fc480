"""What a harness asks, against the definition: one text alone, token by token."""

import numpy as np
import pytest
import torch

from memseq.contract import Memory
from memseq.errors import ConfigError
from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import MemformerLMConfig, StackConfig
from memseq.probes.scoring import Continuation, Scorer
from memseq.tasks.tokenizers import Bytes
from memseq.training.live_bytes import LiveBytes

V, D = 256, 8
TEXTS = ["The sky is blue.", "", "a", "The sky is blue and so is the sea, which goes on for longer than a segment of the model does."]


def gru():
    return StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),)).build().double()


def attention():
    return StackConfig(vocab_size=V, d_model=D, layers=(AttentionConfig(d_model=D, n_heads=2),)).build().double()


def memformer():
    local = SlidingWindowConfig(d_model=D, n_heads=2, window=4)
    slots = SlotsConfig(d_model=D, n_heads=2, n_slots=3, segment_length=4)
    model = MemformerLMConfig(vocab_size=V, d_model=D, layers=(local,), slots=slots).build().double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


MODELS = [gru, attention, memformer]


@torch.no_grad()
def definition(model, context, continuation):
    """Token by token: nats of the continuation, and whether each token is the likeliest."""
    ids, state, logits = list((context + continuation).encode()), model.init_state(1), torch.zeros(1, V)
    total, greedy = 0.0, True
    for place, token in enumerate(ids):
        if place >= len(context.encode()):
            total += float(logits[0].float().log_softmax(-1)[token])
            greedy = greedy and int(logits[0].argmax()) == token
        logits, state = model.step(torch.tensor([token]), state)
    return total, greedy


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_likelihoods_equal_one_text_alone(build, batch_size):
    model = build()
    pairs = [(a, b) for a in ("The sky is", "The", "", "Once upon a time there was") for b in (" blue", " a very long continuation", "x")]
    found = Scorer(model, Bytes(), batch_size=batch_size).loglikelihoods(pairs)
    expected = [definition(model, *pair) for pair in pairs]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("build", MODELS)
def test_whole_texts_equal_one_text_alone(build):
    model = build()
    found = Scorer(model, Bytes(), batch_size=3).rolling(TEXTS)
    assert found == pytest.approx([definition(model, "", text)[0] for text in TEXTS], rel=1e-5)
    assert found[1] == 0.0
    assert found[2] == pytest.approx(-np.log(V), rel=1e-6)  # nothing is before it


@pytest.mark.parametrize("build", MODELS)
def test_the_likeliest_continuation_is_greedy(build):
    model = build()
    scorer = Scorer(model, Bytes(), batch_size=2)
    contexts = ["The sky", "a", "Once upon a time"]
    made = [scorer._continued([scorer.encode(c)], Continuation(tokens=6))[0] for c in contexts]
    assert scorer._continued([scorer.encode(c) for c in contexts], Continuation(tokens=6)) == made
    logits, state = scorer._after([tuple(scorer.encode(c)) for c in contexts])
    with torch.no_grad():
        assert all(greedy for _, greedy in scorer._scores(made, logits, state))
        assert not any(greedy for _, greedy in scorer._scores([[(ids[0] + 1) % V, *ids[1:]] for ids in made], logits, state))


def test_white_space_at_the_end_belongs_to_what_follows():
    scorer = Scorer(gru(), Bytes())
    assert scorer._split("sky ", "blue") == (list(b"sky"), list(b" blue"))
    assert scorer._split(" ", "blue") == ([], list(b" blue"))
    assert scorer._split("", "blue") == ([], list(b"blue"))


def test_a_continuation_ends_before_its_stop():
    """A model that repeats what it read says the alphabet on, and each text ends where its own stop is met."""

    class Next(Memory):
        config = StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),))

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def init_state(self, batch_size):
            return (torch.zeros(batch_size),)

        def step(self, tokens, state):
            return torch.nn.functional.one_hot((tokens + 1) % V, V).float(), state

        def advance(self, tokens, state):
            return state

    scorer = Scorer(Next(), Bytes(), batch_size=4)
    assert scorer.continue_until(["a", "m", "c"], Continuation(until=("h", "pq"), tokens=10)) == ["bcdefg", "no", "defg"]
    assert scorer.continue_until(["a"], Continuation(tokens=3)) == ["bcd"]
    with pytest.raises(ConfigError, match="an empty context cannot be continued"):
        scorer.continue_until([""], Continuation())


def test_what_is_held_does_not_grow_with_the_text():
    model = StackConfig(vocab_size=V, d_model=D, layers=(SlidingWindowConfig(d_model=D, n_heads=2, window=8),)).build()

    def peak(length):
        scorer = Scorer(model, Bytes(), batch_size=2)
        with torch.no_grad(), LiveBytes() as alive:
            scorer.rolling(["x" * length, "y" * length])
        return alive.peak

    assert peak(2048) <= 1.1 * peak(512)


def test_nothing_to_read_is_refused():
    with pytest.raises(ConfigError, match="batch_size=0 reads nothing"):
        Scorer(gru(), Bytes(), batch_size=0)
    with pytest.raises(ConfigError, match="tokens=0 continue nothing"):
        Continuation(tokens=0)

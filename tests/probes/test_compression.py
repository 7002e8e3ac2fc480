"""Bits per byte by position: equal to scoring each document by itself, whatever lies beside it."""

import gzip
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from memseq.errors import ConfigError, DataError
from memseq.layers.slots import SlotsConfig
from memseq.memories.attention import AttentionConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.sliding_window import SlidingWindowConfig
from memseq.models import MemformerLMConfig, StackConfig
from memseq.probes import bits_per_byte, shallow

V, D, L = 11, 8, 4
WIDTH = np.arange(1, V + 1)  # each token stands for another number of bytes


def memformer():
    local = SlidingWindowConfig(d_model=D, n_heads=2, window=L)
    slots = SlotsConfig(d_model=D, n_heads=2, n_slots=3, segment_length=L)
    model = MemformerLMConfig(vocab_size=V, d_model=D, layers=(local, local), slots=slots).build().double()
    for p in model.parameters():  # reads start at zero: move them, so that clearing the slots shows
        p.data += 0.1 * torch.randn_like(p)
    return model


def gru():
    return StackConfig(vocab_size=V, d_model=D, layers=(GRUConfig(d_model=D),)).build().double()


def attention():
    return StackConfig(vocab_size=V, d_model=D, layers=(AttentionConfig(d_model=D, n_heads=2),)).build().double()


MODELS = [memformer, gru, attention]
LENGTHS = [1, 37, 2, 9, 64, 5, 1, 23, 40]


def documents():
    generator = np.random.default_rng(0)
    return [generator.integers(0, V, size=n) for n in LENGTHS]


def in_chunks(document):
    """As a text gives them: in arrays of any sizes, some of them empty."""
    return iter(np.split(document, [min(3, len(document)), min(3, len(document)), min(10, len(document))]))


@torch.no_grad()
def one_by_one(model, forget=None):
    """The definition: every document alone, token by token; nats and bytes at each place."""
    nats, size = {}, {}
    for document in documents():
        state = model.init_state(1)
        for place, (token, following) in enumerate(pairwise(document.tolist()), start=1):
            if forget is not None and (place - 1) % forget == 0 and place > 1:
                fresh = model.init_state(1)
                state = state._replace(slots=fresh.slots) if hasattr(state, "slots") else fresh
            logits, state = model.step(torch.tensor([token]), state)
            nats[place] = nats.get(place, 0.0) + float(F.cross_entropy(logits.float(), torch.tensor([following])))
            size[place] = size.get(place, 0) + int(WIDTH[following])
    return nats, size


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("forget", [None, L, 1])
@pytest.mark.parametrize("streams", [1, 4])
def test_equals_every_document_read_alone(build, forget, streams):
    model = build()
    curve = bits_per_byte(model, map(in_chunks, documents()), token_bytes=WIDTH, forget_every=forget, streams=streams, piece=6)
    nats, size = one_by_one(model, forget)
    assert curve.tokens == sum(n - 1 for n in LENGTHS)
    for b in curve.bins:
        places = [place for place in nats if b.first <= place <= b.last]
        assert b.bytes == sum(size[place] for place in places)
        assert math.isclose(b.nats, sum(nats[place] for place in places), rel_tol=1e-5)
    assert math.isclose(curve.bits_per_byte, sum(nats.values()) / math.log(2) / sum(size.values()), rel_tol=1e-5)


@pytest.mark.parametrize("build", MODELS)
def test_clearing_changes_nothing_before_the_first_border(build):
    model = build()
    carried, cleared = (bits_per_byte(model, map(in_chunks, documents()), token_bytes=WIDTH, forget_every=f) for f in (None, 8))
    assert [b.nats for b in cleared.bins[:3]] == pytest.approx([b.nats for b in carried.bins[:3]], rel=1e-6)  # places 1 to 7
    assert cleared.bins[4].nats != pytest.approx(carried.bins[4].nats, rel=1e-6)


def test_the_model_is_left_in_training():
    model = gru().train()
    bits_per_byte(model, map(in_chunks, documents()[:2]), token_bytes=WIDTH)
    assert model.training


def test_nothing_to_predict_is_said():
    with pytest.raises(DataError, match="no document of two tokens or more"):
        bits_per_byte(gru(), [iter([np.array([3])])], token_bytes=WIDTH)
    with pytest.raises(ConfigError, match="forget_every=0 clears nothing"):
        bits_per_byte(gru(), [], token_bytes=WIDTH, forget_every=0)


def test_shallow_baselines():
    text = b"abcd" * 4096
    measured = shallow(text)
    assert measured["byte counts"] == pytest.approx(2.0)
    assert measured["gzip -9"] == 8 * len(gzip.compress(text, 9)) / len(text)
    assert measured["xz -9"] < 0.1
    with pytest.raises(DataError, match="no text to compress"):
        shallow(b"")

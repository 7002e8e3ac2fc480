"""A stream that answers late: its definition window by window, the whole law, streams that wait for different tokens."""

import pytest
import torch
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError
from memseq.memories.bidirectional import BidirectionalConfig
from memseq.memories.elman import ElmanConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.look_ahead import LookAheadConfig
from memseq.state import select, stack, tensors

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form

exact = {"rtol": 1e-12, "atol": 1e-12}
GRU = GRUConfig(d_model=4, initial="learned")


def double(config):
    return config.build().double()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("memory", [GRU, ElmanConfig(d_model=4, dropout=0.1)], ids=["gru", "elman"])
@pytest.mark.parametrize("look_ahead", [1, 3])
def test_the_stream_keeps_the_whole_law(memory, look_ahead):
    check_memory(LookAheadConfig(memory=memory, look_ahead=look_ahead), effort=SHORT).raise_if_broken()


def look_ahead_by_hand(memory, x, L):
    """One token, one window at a time: the answer for token s stands at s + L."""
    answers = [torch.zeros_like(x[:, 0])] * min(L, x.shape[1])
    state = memory.past.init_state(len(x))
    for s in range(x.shape[1] - L):
        y, state = memory.past.step(x[:, s], state)
        ahead = memory.future.init_state(len(x))
        for t in range(s + L, s - 1, -1):
            back, ahead = memory.future.step(x[:, t], ahead)
        answers.append(y + back)
    return torch.stack(answers, dim=1)


@pytest.mark.parametrize("T", [2, 3, 4, 11])
def test_the_stream_answers_late_from_a_window_a_token(T):
    memory, x = double(LookAheadConfig(memory=GRU, look_ahead=3)), noise(2, T, 4)
    assert_close(memory(x, memory.init_state(2))[0], look_ahead_by_hand(memory, x, 3), **exact)


def test_its_last_answer_is_what_the_encoder_says_of_that_token():
    memory, encoder = double(LookAheadConfig(memory=GRU, look_ahead=10)), double(BidirectionalConfig(memory=GRU))
    encoder.load_state_dict(memory.state_dict())
    x = noise(2, 11, 4)
    assert_close(memory(x, memory.init_state(2))[0][:, 10], encoder(x, encoder.init_state(2))[0][:, 0], **exact)


def test_streams_that_wait_for_different_tokens_share_a_batch():
    memory = double(LookAheadConfig(memory=GRU, look_ahead=4))
    x, lone = noise(4, 6, 4), []
    states = []
    for age in (3, 0, 9, 3):
        state = memory.init_state(1)
        if age:
            state = memory(noise(1, age, 4), state)[1]
        states.append(state)
    for row, state in enumerate(states):
        lone.append(memory(x[row : row + 1], state))
    y, together = memory(x, stack(states))
    assert_close(y, torch.cat([y for y, _ in lone]), **exact)
    for row in range(4):
        assert_close(tensors(select(together, [row])), tensors(lone[row][1]), **exact)
    assert_close(tensors(memory.advance(x, stack(states))), tensors(together), **exact)


def test_what_makes_no_sense_says_why():
    with pytest.raises(ConfigError, match="look_ahead must be at least 1, got 0; without look-ahead use the memory itself"):
        LookAheadConfig(memory=GRU, look_ahead=0)
    with pytest.raises(ConfigError, match="Bidirectional reads both ways already; give a causal memory"):
        LookAheadConfig(memory=BidirectionalConfig(memory=GRU)).build()

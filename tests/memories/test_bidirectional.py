"""Two memories, one each way: torch's bidirectional module, and the weaker law of an encoder."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError
from memseq.memories.bidirectional import BidirectionalConfig
from memseq.memories.gru import GRUConfig
from memseq.memories.lstm import LSTM, LSTMConfig

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form

exact = {"rtol": 1e-12, "atol": 1e-12}
GRU = GRUConfig(d_model=4, initial="learned")


def double(config):
    return config.build().double()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("segment_length", [None, 3])
def test_the_encoder_keeps_its_law(segment_length):
    check_memory(BidirectionalConfig(memory=GRU, segment_length=segment_length), effort=SHORT).raise_if_broken()


def test_a_torch_module_gives_its_numbers():
    module = nn.LSTM(5, 5, bidirectional=True, batch_first=True).double()
    both = double(BidirectionalConfig(memory=LSTMConfig(d_model=5)))
    both.past.load_state_dict(LSTM.from_torch(module, "l0").state_dict())
    both.future.load_state_dict(LSTM.from_torch(module, "l0_reverse").state_dict())
    x = noise(2, 9, 5)
    wanted, (h, c) = module(x)
    y, state = both(x, both.init_state(2))
    assert_close(y, wanted[..., :5] + wanted[..., 5:], **exact)
    assert_close(tuple(state), (h[0], c[0]), **exact)


def test_a_token_knows_its_segment_and_nothing_after_it():
    memory = double(BidirectionalConfig(memory=GRU, segment_length=4))
    x = noise(1, 10, 4).requires_grad_()
    y, _ = memory(x, memory.init_state(1))
    for token, last in ((0, 3), (3, 3), (5, 7), (8, 9)):
        from_x = torch.autograd.grad(y[0, token].sum(), x, retain_graph=True)[0]
        assert from_x[0].abs().sum(-1).nonzero().flatten().tolist() == list(range(last + 1))


def test_cuts_between_segments_change_nothing_and_others_begin_a_segment():
    memory = double(BidirectionalConfig(memory=GRU, segment_length=4))
    x = noise(2, 12, 4)
    y, end = memory(x, memory.init_state(2))

    def pieces(sizes):
        state, outputs = memory.init_state(2), []
        for piece in x.split(sizes, dim=1):
            out, state = memory(piece, state)
            outputs.append(out)
        return torch.cat(outputs, dim=1), state

    between, state = pieces([4, 8])
    assert_close(between, y, **exact)
    assert_close(state, end, **exact)
    inside, state = pieces([6, 6])
    assert_close(state, end, **exact)
    assert (inside - y).abs().max() > 1e-3


def test_what_makes_no_sense_says_why():
    with pytest.raises(ConfigError, match="segment_length must be at least 1, got 0"):
        BidirectionalConfig(memory=GRU, segment_length=0)
    with pytest.raises(ConfigError, match="Bidirectional reads both ways already; give a causal memory"):
        BidirectionalConfig(memory=BidirectionalConfig(memory=GRU)).build()

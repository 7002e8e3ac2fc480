"""Long short-term memory: torch's own numbers, the contract for the whole family, the count of its weights."""

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError
from memseq.memories.elman import ElmanConfig
from memseq.memories.lstm import (
    LSTM,
    Ablated,
    Coupled,
    LayerNormed,
    LSTMConfig,
    Original,
    Peephole,
    Plain,
    Projected,
    RecurrentDropout,
    Zoneout,
)
from memseq.ops.recurrent import ABLATIONS
from memseq.recipes.rnn_review import gradient_by_lag
from memseq.state import select, state_bytes

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form

CELLS = [Zoneout(cell=Peephole(), rates=(0.1, 0.5)), *(Ablated(without=part) for part in ABLATIONS)]  # the rest: tests/contract


@pytest.fixture
def as_users_run_it():
    """Without the checks of types that tests add: a wrong name reaches the config's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_it_is_a_memory_whatever_is_left_out(cell):
    check_memory(LSTMConfig(d_model=5, hidden_size=6, cell=cell, initial="learned"), effort=SHORT).raise_if_broken()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_a_torch_module_gives_its_numbers(proj_size, bias):
    module = nn.LSTM(proj_size or 5, 5, proj_size=proj_size, bias=bias, batch_first=True).double()
    memory = LSTM.from_torch(module)
    x = torch.randn(2, 9, proj_size or 5, dtype=torch.float64)
    y, state = memory(x, memory.init_state(2))
    wanted, (h, c) = module(x)
    assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert_close((state.h, state.c), (h[0], c[0]), rtol=1e-12, atol=1e-12)


def test_texts_of_unequal_length_are_read_as_packed_sequences_are():
    """Cut at the shorter lengths, rows that have ended set aside; torch's packed sequences are the judge."""
    module = nn.LSTM(4, 4, batch_first=True).double()
    memory = LSTM.from_torch(module)
    texts = [torch.randn(n, 4, dtype=torch.float64) for n in (9, 5, 2)]
    wanted, lengths = pad_packed_sequence(module(pack_sequence(texts))[0], batch_first=True)

    state, outputs, start = memory.init_state(3), [[], [], []], 0
    for end in (2, 5, 9):
        rows = [i for i, text in enumerate(texts) if len(text) >= end]
        y, state = memory(torch.stack([texts[i][start:end] for i in rows]), select(state, range(len(rows))))
        for row, piece in zip(rows, y, strict=True):
            outputs[row].append(piece)
        start = end
    for row, length in enumerate(lengths.tolist()):
        assert_close(torch.cat(outputs[row]), wanted[row, :length], rtol=1e-12, atol=1e-12)


def test_the_weights_are_counted_as_in_the_review():
    I, D, P = 5, 7, 3
    counts = {
        Plain(): 4 * D * (I + D + 1),
        Peephole(): 4 * D * (I + D + 1) + 3 * D,
        Coupled(): 3 * D * (I + D + 1),
        Projected(size=P): 4 * D * (I + P + 1) + D * P,
        Original(): 3 * D * (I + D + 1),
        LayerNormed(): 4 * D * (I + D + 1) + 2 * 4 * D + 2 * D,
    }
    for cell, count in counts.items():
        memory = LSTMConfig(d_model=I, hidden_size=D, cell=cell).build()
        assert sum(p.numel() for p in memory.cell.parameters()) == count, cell


@pytest.mark.parametrize(
    ("cell", "place"), [(Plain(), 1), (Coupled(), 0), (Ablated(without="input_gate"), 0), (Ablated(without="output_gate"), 1)]
)
def test_the_forget_gate_starts_open_and_no_other_gate_is_moved(cell, place):
    biases = LSTMConfig(d_model=3, hidden_size=4, cell=cell).build().cell.gates.b.detach().split(4)
    assert [float(b.unique()) for b in biases] == [1.0 if i == place else 0.0 for i in range(len(biases))]


def test_a_state_is_two_floats_a_hidden_unit_at_any_age():
    memory = LSTMConfig(d_model=3, hidden_size=8).build()
    for T in (1, 1000):
        _, state = memory(torch.randn(2, T, 3), memory.init_state(2))
        assert state_bytes(state) == 8 * 2 * 8


def test_autocast_changes_nothing_that_is_carried():
    for cell in (Plain(), Peephole()):
        memory = LSTMConfig(d_model=16, cell=cell).build()
        x = torch.randn(2, 50, 16)
        _, state = memory(x, memory.init_state(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, low = memory(x, memory.init_state(2))
        assert y.dtype == torch.bfloat16
        assert_close(low, state, rtol=0, atol=0)


def test_a_bfloat16_model_carries_float32():
    memory = LSTMConfig(d_model=16, initial="learned").build().bfloat16()
    y, state = memory(torch.randn(2, 5, 16, dtype=torch.bfloat16), memory.init_state(2))
    assert (y.dtype, state.h.dtype, state.c.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    y, after = memory.step(torch.randn(2, 16, dtype=torch.bfloat16), state)
    assert (y.dtype, after.c.dtype) == (torch.bfloat16, torch.float32)


def test_a_gradient_may_be_asked_for_in_any_mode():
    memory = LSTMConfig(d_model=4, initial="learned").build().eval()
    y, _ = memory(torch.randn(2, 5, 4), memory.init_state(2))
    y.square().sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in memory.parameters())


def test_a_learned_start_is_a_copy_that_training_does_not_reach_back_into():
    memory = LSTMConfig(d_model=4, initial="learned").build()
    state = memory.init_state(3)
    with torch.no_grad():
        memory.initial[0] += 1
    assert float(state.h.detach().abs().max()) == 0.0


def test_errors_vanish_in_elman_and_live_in_a_cell_that_keeps():
    """Lag 100, as in the review's argument: a factor above 10,000 against one below 100."""
    elman = gradient_by_lag(ElmanConfig(d_model=32, radius=0.9), lag=100)
    lstm = gradient_by_lag(LSTMConfig(d_model=32, cell=Plain(forget_bias=5.0)), lag=100)
    assert elman[0] / elman[100] > 1e4
    assert lstm[0] / lstm[100] < 1e2


@pytest.mark.usefixtures("as_users_run_it")
def test_what_makes_no_sense_says_why():
    with pytest.raises(ConfigError, match="narrower than the 8 hidden units, got size=8; choose 1 to 7"):
        LSTMConfig(d_model=8, cell=Projected(size=8)).build()
    with pytest.raises(ConfigError, match=r"without must be one of input_gate, .*, got 'peephole'"):
        Ablated(without="peephole")
    with pytest.raises(ConfigError, match=r"without dropout use Plain\(\)"):
        RecurrentDropout(rate=0.0)

"""Jordan's network: the contract, the teacher, the count of its weights."""

import jaxtyping
import pytest
import torch
from torch.testing import assert_close

from memseq.checking import Effort, check_memory
from memseq.errors import ConfigError, InputError
from memseq.memories.jordan import JordanConfig

SHORT = Effort(bounded=300, finite=1000, finite_unbounded=1000, piece=250)  # the contract proper goes further, for each memory's first form

exact = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture
def as_users_run_it():
    """Without the checks of types that tests add: a wrong name reaches the config's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_it_is_a_memory():
    check_memory(JordanConfig(d_model=4, hidden_size=6, output="sigmoid", initial="learned"), effort=SHORT).raise_if_broken()


def test_a_teacher_who_says_what_it_says_changes_nothing():
    memory = JordanConfig(d_model=4, hidden_size=6, decay=0.7, output="tanh").build().double()
    x = torch.randn(2, 90, 4, dtype=torch.float64)
    _, state = memory(torch.randn(2, 5, 4, dtype=torch.float64), memory.init_state(2))
    y, after = memory(x, state)
    y_forced, after_forced = memory.forced(x, y, state)
    assert_close(y_forced, y, **exact)
    assert_close(after_forced, after, **exact)


def test_under_a_teacher_no_token_waits_for_another():
    """Token t depends on x_t and on the teacher's outputs before it, on no other input, and on nothing later."""
    memory = JordanConfig(d_model=4, hidden_size=6).build().double()
    x, targets = (torch.randn(1, 8, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y, _ = memory.forced(x, targets, memory.init_state(1))
    from_x, from_teacher = torch.autograd.grad(y[0, 5].sum(), (x, targets))
    assert from_x[0].abs().sum(-1).nonzero().flatten().tolist() == [5]
    assert from_teacher[0].abs().sum(-1).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_taught_stream_read_in_pieces_is_the_same_stream():
    memory = JordanConfig(d_model=4, decay=0.7).build().double()
    x, targets = (torch.randn(2, 20, 4, dtype=torch.float64) for _ in range(2))
    y, end = memory.forced(x, targets, memory.init_state(2))
    state, pieces = memory.init_state(2), []
    for a, b in zip(x.split([1, 12, 7], dim=1), targets.split([1, 12, 7], dim=1), strict=True):
        piece, state = memory.forced(a, b, state)
        pieces.append(piece)
    assert_close(torch.cat(pieces, dim=1), y, **exact)
    assert_close(state, end, **exact)


def test_its_weights_are_counted_as_in_the_review():
    I = O = 4
    D = 7
    assert sum(p.numel() for p in JordanConfig(d_model=I, hidden_size=D).build().parameters()) == D * (I + O + 1) + O * (D + 1)


@pytest.mark.usefixtures("as_users_run_it")
def test_what_makes_no_sense_says_why():
    with pytest.raises(ConfigError, match=r"decay must lie in \[0, 1\), got 1.0"):
        JordanConfig(d_model=4, decay=1.0)
    with pytest.raises(ConfigError, match="output must be one of identity, tanh, sigmoid, got 'relu'"):
        JordanConfig(d_model=4, output="relu")
    memory = JordanConfig(d_model=4).build()
    with pytest.raises(InputError, match=r"shape of the inputs \[1, 3, 4\], got \[1, 2, 4\]"):
        memory.forced(torch.zeros(1, 3, 4), torch.zeros(1, 2, 4), memory.init_state(1))

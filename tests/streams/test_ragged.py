"""A ragged batch is its sequences, each read alone: outputs, states and gradients."""

import pytest
import torch
from torch.testing import assert_close

from memseq.errors import ConfigError, InputError, StateError
from memseq.state import select, stack, tensors
from memseq.streams import read_ragged, read_ragged_last

LENGTHS = [[5, 3, 3, 1], [1, 7, 2], [4, 4, 4], [6], [2, 9, 1, 9, 5, 1]]


def sequences(lengths, vocab=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=g) for n in lengths]


def alone(model, given, states=None):
    pairs = [model(s[None], model.init_state(1) if states is None else select(states, [i])) for i, s in enumerate(given)]
    return [y[0] for y, _ in pairs], stack([state for _, state in pairs])


def same(a, b):
    assert_close(tensors(a), tensors(b), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_ragged_batch_is_its_sequences_read_alone(model, lengths):
    given = sequences(lengths)
    expected, expected_state = alone(model, given)
    outputs, state = read_ragged(model, given)
    assert_close(outputs, expected, rtol=1e-10, atol=1e-12)
    same(state, expected_state)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("chunk_size", [1, 2, 4096])
def test_the_last_outputs_are_those_of_the_whole_read(model, lengths, chunk_size):
    given = sequences(lengths)
    expected, expected_state = alone(model, given)
    last, state = read_ragged_last(model, given, chunk_size=chunk_size)
    assert_close(last, torch.stack([y[-1] for y in expected]), rtol=1e-10, atol=1e-12)
    same(state, expected_state)


@pytest.mark.parametrize("read", [read_ragged, read_ragged_last])
def test_streams_of_different_ages_go_on_together(model, read):
    _, state = read_ragged(model, sequences([4, 1, 2], seed=1))
    before = [t.clone() for t in tensors(state)]
    given = sequences([2, 5, 3])
    expected, expected_state = alone(model, given, state)
    outputs, after = read(model, given, state)
    assert_close([y if read is read_ragged_last else y[-1] for y in outputs], [y[-1] for y in expected], rtol=1e-10, atol=1e-12)
    same(after, expected_state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(state), strict=True)), "the state given was written to"


def test_an_empty_sequence_leaves_its_row_as_it_was(model):
    _, state = read_ragged(model, sequences([4, 1, 2], seed=1))
    outputs, after = read_ragged(model, [*sequences([2, 0]), []], state)
    for a, b in zip(tensors(select(state, [1, 2])), tensors(select(after, [1, 2])), strict=True):
        kept = b[:, : a.shape[1]] if a.ndim > 1 else b  # a store has grown with its longest row, by zeros in the others
        assert torch.equal(a, kept)
    assert [len(y) for y in outputs] == [2, 0, 0]


def test_gradients_are_those_of_reading_alone(gru):
    model, given = gru(), sequences([5, 2, 3])
    parameters = list(model.parameters())
    together = torch.autograd.grad(sum(y.square().sum() for y in read_ragged(model, given)[0]), parameters)
    apart = torch.autograd.grad(sum(y.square().sum() for y in alone(model, given)[0]), parameters)
    assert_close(together, apart, rtol=1e-9, atol=1e-12)


def test_nothing_but_the_streams_own_tokens_is_read(gru):
    model, read = gru(), []
    forward = model.forward
    model.forward = lambda tokens, state: (read.append(tokens.numel()), forward(tokens, state))[1]
    lengths = [5, 3, 3, 1, 9]
    read_ragged(model, sequences(lengths))
    assert sum(read) == sum(lengths)


def test_equal_lengths_are_one_read(gru):
    model, calls = gru(), []
    forward = model.forward
    model.forward = lambda tokens, state: (calls.append(tuple(tokens.shape)), forward(tokens, state))[1]
    read_ragged(model, sequences([6, 6, 6]))
    assert calls == [(3, 6)]


def test_the_last_outputs_never_ask_for_all(gru):
    """Bounded memory: no call reads more than a chunk, and only single steps make outputs."""
    model, calls = gru(), []
    forward = model.forward
    model.forward = lambda tokens, state: (calls.append(tokens.shape[1]), forward(tokens, state))[1]
    read_ragged_last(model, sequences([1000, 37]), chunk_size=64)
    assert max(calls) == 64


def test_lists_of_ids_serve_as_tensors_do(gru):
    model = gru()
    assert_close(read_ragged(model, [[1, 2, 3], [4]])[0], read_ragged(model, [torch.tensor([1, 2, 3]), torch.tensor([4])])[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: read_ragged(m, []), InputError, "the list is empty"),
        (lambda m: read_ragged(m, [[], []]), InputError, "all 2 sequences are empty"),
        (lambda m: read_ragged_last(m, [[1], []]), InputError, "sequence 1 is empty"),
        (lambda m: read_ragged_last(m, [[1]], chunk_size=0), ConfigError, "chunk_size=0"),
        (lambda m: read_ragged(m, [[1, 11]]), InputError, "ids 0 to 10, got 11"),
        (lambda m: read_ragged(m, [[-1]]), InputError, "got -1"),
        (lambda m: read_ragged(m, ["text"]), InputError, "list of integers, got str 'text'"),
        (lambda m: read_ragged(m, [torch.zeros(1, 2, dtype=torch.int64)]), InputError, r"shape \[1, 2\]"),
        (lambda m: read_ragged(m, [torch.zeros(2)]), InputError, r"\[T, D\], got \[2\]"),
        (lambda m: read_ragged(m, [[1], [2]], m.init_state(3)), StateError, "holds 3 streams and the input 2"),
    ],
)
def test_errors_say_what_was_given(gru, call, error, words):
    with pytest.raises(error, match=words):
        call(gru())

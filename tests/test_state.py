"""The verbs on states: each is the inverse, the gradient or the refusal it says it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from states import Inner, Outer, made, same

from memseq.contract import empty
from memseq.errors import StateError
from memseq.state import (
    batch_size,
    choose,
    detach,
    fork,
    is_finite,
    leaf_names,
    map_state,
    rebuild,
    select,
    stack,
    state_bytes,
    tensors,
    to,
)

# ---------------------------------------------------------------------------------------------------------------- tree


def test_leaves_are_named_by_their_path_and_keep_their_order() -> None:
    state = made(2)
    assert leaf_names(state) == ["layers.0.M", "layers.0.seen", "layers.1.M", "layers.1.seen", "flag"]
    assert [t.ndim for t in tensors(state)] == [3, 1, 3, 1, 1]
    assert leaf_names({"a": torch.zeros(1), "b": [torch.zeros(1)]}) == ["a", "b.0"]
    assert (leaf_names(()), tensors(())) == ([], [])


def test_rebuild_is_the_inverse_of_tensors() -> None:
    state, other = made(2), made(2, seed=1)
    assert same(rebuild(state, tensors(other)), other)
    assert isinstance(rebuild(state, tensors(other)), Outer)


def test_map_reads_states_leaf_by_leaf_and_refuses_other_trees() -> None:
    state = made(2)
    doubled = map_state(lambda a, b: a + b if a.dtype != torch.bool else a, state, state)
    assert torch.equal(doubled.layers[1].M, 2 * state.layers[1].M)
    with pytest.raises(StateError, match="of different kinds"):
        map_state(lambda a, b: a, state, state.layers[0])


def test_batch_size_is_the_number_of_streams() -> None:
    assert batch_size(made(5)) == 5
    assert batch_size(()) is None


def test_detach_cuts_the_graph_and_shares_the_storage() -> None:
    M = torch.ones(2, 2, 3, requires_grad=True)
    state = Inner(2 * M, torch.zeros(2, dtype=torch.int64))
    cut = detach(state)
    assert not cut.M.requires_grad
    assert cut.M.data_ptr() == state.M.data_ptr()


def test_is_finite_looks_at_every_floating_leaf() -> None:
    state = made(2)
    assert is_finite(state)
    assert is_finite(())
    for bad in (float("nan"), float("inf")):
        M = state.layers[1].M.clone()
        M[1, 0, 0] = bad
        assert not is_finite(state._replace(layers=(state.layers[0], Inner(M, state.layers[1].seen))))


# ------------------------------------------------------------------------------------------------------------- to


def test_to_a_dtype_leaves_counts_and_flags_as_they_are() -> None:
    moved = to(made(2), torch.float64)
    assert [t.dtype for t in tensors(moved)] == [torch.float64, torch.int64, torch.float64, torch.int64, torch.bool]
    assert same(to(moved, torch.float32), made(2))


def test_to_a_device_keeps_counts_on_the_host() -> None:
    moved = to(made(2), "meta")
    assert [t.device.type for t in tensors(moved)] == ["meta", "cpu", "meta", "cpu", "meta"]
    assert torch.equal(moved.layers[0].seen, made(2).layers[0].seen)
    assert [t.device.type for t in tensors(to(made(2), torch.device("meta")))] == ["meta", "cpu", "meta", "cpu", "meta"]


# --------------------------------------------------------------------------------------------------- select and stack


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_select_is_the_inverse_of_stack(sizes: list[int], seed: int) -> None:
    states = [made(rows, seed=seed + i) for i, rows in enumerate(sizes)]
    joined, start = stack(states), 0
    assert batch_size(joined) == sum(sizes)
    for state, rows in zip(states, sizes, strict=True):
        assert same(select(joined, slice(start, start + rows)), state)
        assert same(select(joined, list(range(start, start + rows))), state)
        start += rows
    assert same(stack([select(joined, [i]) for i in range(sum(sizes))]), joined)


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_permutation_is_undone_by_its_inverse(order: list[int], seed: int) -> None:
    state = made(5, seed=seed)
    assert same(select(select(state, order), torch.tensor(order).argsort()), state)


def test_select_takes_an_index_a_mask_a_slice_and_counts_from_the_end() -> None:
    state = made(4)
    wanted = stack([select(state, [1]), select(state, [3])])
    for rows in (
        [1, 3],
        (1, 3),
        torch.tensor([1, 3]),
        [1, -1],
        torch.tensor([False, True, False, True]),
        [False, True, False, True],
        slice(1, 4, 2),
    ):
        assert same(select(state, rows), wanted), rows


def test_nothing_selected_is_a_state_of_no_streams() -> None:
    for rows in ([], torch.zeros(3, dtype=torch.bool), slice(0, 0)):
        assert [tuple(t.shape) for t in tensors(select(made(3), rows))] == [(0, 2, 3), (0,), (0, 2, 3), (0,), (0,)]


@pytest.mark.parametrize("rows", [[3], [-4], [0, 7]])
def test_select_refuses_streams_that_are_not_there(rows: list[int]) -> None:
    with pytest.raises(StateError, match=r"the state holds 3 streams, numbered 0 to 2; rows \["):
        select(made(3), rows)


def test_select_refuses_a_mask_of_another_length() -> None:
    with pytest.raises(StateError, match=r"the state holds 3 streams and the mask has shape \[2\]"):
        select(made(3), torch.tensor([True, False]))


def test_the_state_of_a_memory_without_one_takes_any_rows() -> None:
    assert select((), [0, 7]) == ()
    assert stack([(), ()]) == ()
    assert fork((), 3) == ()


def test_stack_fills_up_what_grows_with_zeros() -> None:
    short, long = (Inner(torch.ones(1, T, 3), torch.tensor([T])) for T in (2, 5))
    joined = stack([short, long])
    assert joined.M.shape == (2, 5, 3)
    assert torch.equal(joined.M[0, :2], torch.ones(2, 3))
    assert not joined.M[0, 2:].any()
    assert torch.equal(joined.M[1], long.M[0])
    assert joined.seen.tolist() == [2, 5]


def test_stack_refuses_nothing_and_other_models() -> None:
    with pytest.raises(StateError, match="at least one state, got an empty list"):
        stack([])
    with pytest.raises(StateError, match="states of different models cannot be stacked: leaves of shapes"):
        stack([Inner(torch.ones(1, 2, 3), torch.tensor([0])), Inner(torch.ones(1, 2, 4), torch.tensor([0]))])
    with pytest.raises(StateError, match="of different kinds"):
        stack([made(1), made(1).layers])


# ------------------------------------------------------------------------------------------------------ fork and choose


def test_fork_puts_copies_side_by_side_and_shares_nothing() -> None:
    state = made(2)
    copies = fork(state, 3)
    assert same(copies, select(state, [0, 0, 0, 1, 1, 1]))
    copies.layers[0].M.zero_()
    assert same(state, made(2))


@given(mask=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=16, deadline=None)
def test_choose_is_row_by_row(mask: list[bool]) -> None:
    a, b = made(4, seed=1), made(4, seed=2)
    chosen = choose(torch.tensor(mask), a, b)
    assert same(chosen, stack([select(a if take else b, [i]) for i, take in enumerate(mask)]))


def test_the_gradient_of_choose_reaches_the_chosen_rows_alone() -> None:
    a, b = (torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    counts, weight = torch.zeros(3, dtype=torch.int64), torch.randn(3, 2, 3, dtype=torch.float64)
    mask = torch.tensor([True, False, True])
    (choose(mask, Inner(a, counts), Inner(b, counts)).M * weight).sum().backward()
    assert torch.equal(a.grad, weight * mask[:, None, None])
    assert torch.equal(b.grad, weight * ~mask[:, None, None])


def test_verbs_write_to_nothing_they_are_given() -> None:
    state = made(3)
    versions = [t._version for t in tensors(state)]
    for call in (
        lambda s: select(s, [1]),
        lambda s: stack([s, s]),
        lambda s: fork(s, 2),
        lambda s: choose(torch.tensor([True, False, True]), s, s),
        lambda s: to(s, torch.float64),
        detach,
    ):
        call(state)
    assert [t._version for t in tensors(state)] == versions
    assert same(state, made(3))


# --------------------------------------------------------------------------------------------------------------- bytes


def test_bytes_are_those_of_the_storages() -> None:
    assert state_bytes(made(2)) == 2 * (2 * 2 * 3 * 4 + 2 * 8) + 2
    assert state_bytes(()) == 0
    assert state_bytes((torch.zeros(10, dtype=torch.bfloat16),)) == 20
    shared = torch.zeros(10)
    assert state_bytes((shared, shared[:5].view(5))) == 40, "what leaves share counts once"
    assert state_bytes((torch.zeros(1, 1000)[:, -1:],)) == 4000, "a view counts what it keeps alive"
    assert state_bytes((empty(torch.zeros(1), 3, 1000),)) == 4, "an empty buffer costs one number"

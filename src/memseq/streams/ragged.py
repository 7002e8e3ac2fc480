"""Sequences of different lengths, read together and without padding.

A stream reads its own tokens; nothing else enters a state. The rows are ordered longest first and read up to each
distinct length in turn; a row whose sequence ends leaves the batch there with its state as it is:

    lengths 5 3 3 1      tokens 0       read by rows 0 1 2 3
                         tokens 1 2     read by rows 0 1 2
                         tokens 3 4     read by row  0

By the law of splits this equals reading every sequence alone. The streams may be of any age; gradients flow when they
are enabled. A batch whose sequences are equally long is one ordinary read.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.contract import Memory, check_rows
from memseq.errors import ConfigError, InputError
from memseq.state import State, select, stack
from memseq.streams.reading import as_tokens, device_of

__all__ = ["read_ragged", "read_ragged_last"]

Read = Callable[[Tensor, State, list[int], int], State]  # (tokens, state, rows, where the piece ends) -> state


def read_ragged(model: Memory[Any], sequences: Sequence[Any], states: State | None = None) -> tuple[list[Tensor], State]:
    """Read each sequence after its row of `states`: the outputs of each, [T_i, V], and all states in the given order.

    model      a language model (sequences of token ids) or a memory (features [T_i, D])
    sequences  tensors, or lists of token ids; an empty one leaves its row of the state as it was
    states     a state of as many rows as there are sequences; None for streams that have read nothing

    >>> outputs, state = read_ragged(model, [[1, 2, 3], [4]])
    >>> [len(y) for y in outputs]
    [3, 1]
    """
    pieces: list[list[Tensor]] = [[] for _ in sequences]

    def read(tokens: Tensor, state: State, rows: list[int], end: int) -> State:
        y, state = model(tokens, state)
        for row, outputs in zip(rows, y, strict=True):
            pieces[row].append(outputs)
        return state

    state = _walk(model, sequences, states, None, read)
    like = next((outputs[0] for outputs in pieces if outputs), None)
    if like is None:
        raise InputError(f"all {len(pieces)} sequences are empty: there is nothing to read")
    return [torch.cat(outputs) if outputs else like.new_empty(0, *like.shape[1:]) for outputs in pieces], state


def read_ragged_last(
    model: Memory[Any], sequences: Sequence[Any], states: State | None = None, *, chunk_size: int = 4096
) -> tuple[Float[Tensor, "B V"], State]:
    """`read_ragged` for the last output of each sequence only, in memory that does not grow with the sequences.

    All but the last token of each sequence goes through `advance`, at most `chunk_size` tokens at once (speed and
    memory only): what is held is one piece and the state, under `torch.no_grad()`.
    """
    if chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size} reads nothing; use at least 1")
    last: list[Tensor | None] = [None] * len(sequences)
    lengths = [len(s) for s in sequences]
    if 0 in lengths:
        raise InputError(f"sequence {lengths.index(0)} is empty and has no last output; leave it out, or use read_ragged")

    def read(tokens: Tensor, state: State, rows: list[int], end: int) -> State:
        if end != lengths[rows[-1]]:
            return model.advance(tokens, state)
        if tokens.shape[1] > 1:
            state = model.advance(tokens[:, :-1], state)
        y, state = model.step(tokens[:, -1], state)
        for row, output in zip(rows, y, strict=True):
            if lengths[row] == end:
                last[row] = output
        return state

    state = _walk(model, sequences, states, chunk_size, read)
    return torch.stack([output for output in last if output is not None]), state


def _walk(model: Memory[Any], sequences: Sequence[Any], states: State | None, chunk_size: int | None, read: Read) -> State:
    """Call `read` on each piece that the rows still running have in common, and gather the states in the given order."""
    if not sequences:
        raise InputError("there are no sequences to read: the list is empty")
    given = [as_tokens(model, sequence) for sequence in sequences]
    order = sorted(range(len(given)), key=lambda row: -len(given[row]))
    in_order = order == list(range(len(given)))
    if states is None:
        state = model.init_state(len(given))
    else:
        check_rows(len(given), device_of(model), states)
        state = states if in_order else select(states, order)

    start, running, ended = 0, len(order), []
    while running:
        alive = sum(len(s) > start for s in given)
        if alive < running:
            # an undivided batch keeps its state as it is: selecting every row would only copy it
            ended.append(state if alive == 0 and not ended else select(state, slice(alive, running)))
            state, running = select(state, slice(0, alive)), alive
            continue
        end = len(given[order[running - 1]])
        if chunk_size is not None:
            end = min(end, start + chunk_size)
        tokens = torch.stack([given[row][start:end] for row in order[:running]])
        state = read(tokens, state, order[:running], end)
        start = end
    state = ended[0] if len(ended) == 1 else stack(ended[::-1])
    return state if in_order else select(state, torch.tensor(order).argsort())

"""How a test reads: a stream in pieces, and a stream that already has a past."""

import torch
from torch import Tensor

from memseq.contract import Memory
from memseq.state import State

__all__ = ["aged", "read"]


def read(memory: Memory, x: Tensor, cuts: int | list[int], state: State = None) -> tuple[Tensor, State]:
    """Outputs and state after x in pieces of `cuts` tokens; from the first token on where no state is given."""
    state, y = memory.init_state(len(x)) if state is None else state, []
    for piece in x.split(cuts, dim=1):
        o, state = memory(piece, state)
        y.append(o)
    return torch.cat(y, dim=1), state


def aged(memory: Memory, past: Tensor) -> State:
    """The state of streams that have read `past` [B, T, D], which may be nothing."""
    return memory.advance(past, memory.init_state(len(past))) if past.shape[1] else memory.init_state(len(past))

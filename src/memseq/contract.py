"""What a memory is: `y, state = memory(x, state)`, and the proof that one keeps the law.

A memory reads any number of tokens T >= 1 and hands back its outputs and what it remembers; reading a stream whole,
token by token or cut anywhere gives the same outputs, the same state and the same gradients.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from memseq.errors import InputError, StateError
from memseq.state import State, tensors

if TYPE_CHECKING:
    from memseq.checking import Effort, Report, check_memory

__all__ = ["Effort", "Memory", "Report", "check_memory", "check_rows", "empty"]

S = TypeVar("S")


class Memory(nn.Module, Generic[S]):
    """A module that carries its past in a state it is given and returns, and nowhere else.

    A subclass sets `self.config` (a frozen dataclass with `build()` and `d_model`) and defines `init_state` and
    `forward`; `step` and `advance` have defaults that are right and may be overridden to be fast. `memory(x, state)`
    checks the input before `forward` sees it.

    Shapes: x [B, T, D] -> y [B, T, D]; every leaf of the state [B, ...].
    """

    bounded: ClassVar[bool] = True  # False: the state grows with the stream, at most linearly
    causal: ClassVar[bool] = True  # False: an encoder, whose outputs may depend on later tokens
    config: Any

    def init_state(self, batch_size: int) -> S:
        """The state of `batch_size` streams that have read nothing."""
        raise TypeError(f"{type(self).__name__} must define init_state(batch_size)")

    def forward(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """Read x [B, T, D] after `state`: outputs [B, T, D] and the state after the last token."""
        raise TypeError(f"{type(self).__name__} must define forward(x, state)")

    def step(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """Read one token x [B, D]: output [B, D] and the next state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state

    def advance(self, x: Tensor, state: S) -> S:
        """The state after x [B, T, D], without the outputs: the critical path of replay."""
        return self(x, state)[1]

    def __call__(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        self.check_input(x, state)
        return super().__call__(x, state)

    def check_input(self, x: Tensor, state: State) -> None:
        """Raise `InputError` or `StateError` where x [B, T, D] and `state` cannot be read together."""
        d_model = self.config.d_model
        if x.ndim != 3 or x.shape[2] != d_model:
            raise InputError(f"{type(self).__name__} reads features of shape [B, T, {d_model}], got {list(x.shape)}")
        if x.shape[1] == 0:
            raise InputError(f"{type(self).__name__} was given a piece of T = 0 tokens; give at least one, or keep the state as it is")
        check_rows(x.shape[0], x.device, state)


def check_rows(rows: int, device: torch.device, state: State) -> None:
    """Raise `StateError` unless every leaf of `state` holds `rows` streams and lies where the input lies."""
    for t in tensors(state):
        if t.shape[0] != rows:
            raise StateError(
                f"the state holds {t.shape[0]} streams and the input {rows};"
                f" take streams with select(state, rows) or start anew with init_state({rows})"
            )
        if t.is_floating_point() and t.device.type != device.type:
            raise StateError(f"the state lies on {t.device} and the input on {device}; move it with to(state, '{device}')")


def empty(like: Tensor, *shape: int, fill: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
    """A buffer that holds nothing yet: one number shown in the full `shape`, so that it costs four bytes until it is used."""
    return like.new_full((), fill, dtype=dtype).expand(*shape) if all(shape) else like.new_empty(shape, dtype=dtype)


def __getattr__(name: str) -> Any:
    """The proof is large and rarely needed: `check_memory`, `Effort` and `Report` are imported when they are asked for."""
    if name in {"check_memory", "Effort", "Report"}:
        from memseq import checking

        return getattr(checking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

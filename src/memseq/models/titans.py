"""What Titans' three models share: blocks of a branch with a long memory, near attention and persistent tokens, and a feedforward.

Source: Titans (Behrouz et al., arXiv:2501.00663), section 4: memory as a context (`titans_mac.py`), as a gate (`titans_mag.py`), as a layer
(`titans_mal.py`). A block is x += branch(norm x); x += FFN(norm x), and the models are stacks of them (`models/stack.py`).
"""

from dataclasses import dataclass
from typing import Any

from memseq.errors import ConfigError
from memseq.memories.titans import TitansConfig
from memseq.models.stack import Stack, check_stack

__all__ = ["Branch", "TitansModel"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The config of one layer, a memory that keeps the law by itself; a subclass has `build()`."""

    d_model: int
    n_persistent: int
    memory: TitansConfig

    def __post_init__(self) -> None:
        if self.memory.d_model != self.d_model:
            raise ConfigError(f"memory has d_model={self.memory.d_model} and the model d_model={self.d_model}; make them equal")
        if self.n_persistent < 0:
            raise ConfigError(f"n_persistent must be at least 0, got {self.n_persistent}")

    @property
    def segment_length(self) -> int:
        return self.memory.segment_length


@dataclass(frozen=True, kw_only=True)
class TitansModel:
    """The config of a model; a subclass says what its `branch` is."""

    vocab_size: int
    d_model: int
    n_layers: int
    memory: TitansConfig
    n_persistent: int = 4
    ff_mult: float = 4.0  # hidden units of the feedforward, in d_model
    dropout: float = 0.0  # of the embedding and of every residual branch

    def __post_init__(self) -> None:
        check_stack(self)

    @property
    def branch(self) -> Branch:
        raise TypeError(f"{type(self).__name__} must define branch")

    @property
    def layers(self) -> tuple[Any, ...]:
        return self.n_layers * (self.branch,)

    def build(self) -> Stack:
        return Stack(self)

"""Based: causal linear attention whose features are the Taylor expansion of the softmax's kernel.

Source: *Simple linear attention language models balance the recall-throughput tradeoff* (Arora et al., arXiv:2402.18668).

    S_t = S_(t-1) + phi(k_t)^T v_t,   n_t = n_(t-1) + phi(k_t)
    y_t = W_O phi(q_t) S_t / phi(q_t) . n_t                      phi: `ops/taylor.py`, per head

As published it stands in a stack beside short windows of softmax attention (`memories/sliding_window.py`) and short
convolutions (`memories/base_conv.py`): `models/jrt_rnn.py` has the pattern.

State: M = [S, n], 4 B H F (V + 1) bytes in float32, F = 1 + d + d (d + 1) / 2 for features of size d: 153 at d = 16.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from memseq.contract import Memory
from memseq.layers.taylor_attention import TaylorHeads, TaylorState, check_taylor

__all__ = ["BasedConfig", "BasedMemory"]


@dataclass(frozen=True, kw_only=True)
class BasedConfig:
    d_model: int
    n_heads: int = 4
    feature_size: int = 16  # d: numbers of a query and a key, of which all products of two are features
    chunk_size: int = 64  # speed and rounding only: every chunk size computes the same function

    def __post_init__(self) -> None:
        check_taylor(self.d_model, self.n_heads, self.feature_size, self.chunk_size)

    def build(self) -> "BasedMemory":
        return BasedMemory(self)


class BasedMemory(Memory[TaylorState]):
    def __init__(self, config: BasedConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = TaylorHeads(config.d_model, config.n_heads, config.feature_size, config.chunk_size)

    def init_state(self, batch_size: int) -> TaylorState:
        return self.heads.init_state(batch_size)

    def forward(self, x: Float[Tensor, "B T D"], state: TaylorState) -> tuple[Float[Tensor, "B T D"], TaylorState]:
        return self.heads(x, state)

    def advance(self, x: Float[Tensor, "B T D"], state: TaylorState) -> TaylorState:
        self.check_input(x, state)
        return self.heads.write(self.heads.key, self.heads.value, x, state)

"""JRT-RNN: linear attention that reads a prefix twice, once to know all of it and once in order.

Source: *Just read twice: closing the recall gap for recurrent language models* (Arora et al., arXiv:2407.05483), prefix linear
attention. Positions 1 ... M are the prefix; it has keys and values of its own, beside those of the ordinary causal ones:

    k, v = W x,   k^e, v^e = W^e x                                                    q is shared
    S^e = sum_(j <= M) phi(k^e_j)^T v^e_j,   n^e = sum_(j <= M) phi(k^e_j)            `encode`: a sum, in any order
    y_i = W_O phi(q_i) (S^e + sum_(j <= i) phi(k_j)^T v_j) / phi(q_i) . (n^e + sum_(j <= i) phi(k_j))      for every i, also i <= M

So a token of the prefix sees all of the prefix, and what to keep is decided by one who has seen the question. After the prefix the
state is the plain sum of both, and reading on is Based's step. A memory that encodes nothing is Based (`memories/based.py`).

    state = memory.encode(prefix, state)      pieces of any size and order; `keep` [B, T] names the tokens that are of the prefix
    y, state = memory(prefix, state)          the ordinary law, here and for all that follows; `read_prefix` does both

A call keeps the law: splits, causality and replay are proven for `forward`. The encoder's part of the state is given before the
first token is read, so a layer can answer for the prefix only when the layer below has answered for all of it: the model
(`models/jrt_rnn.py`) reads a prefix layer by layer.

State: M = [S, n], 4 B H F (V + 1) bytes in float32; nothing else of the prefix is kept.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, nn

from memseq.errors import InputError
from memseq.layers.linear import Linear
from memseq.layers.prefix import PrefixMemory
from memseq.layers.taylor_attention import TaylorHeads, TaylorState, check_taylor

__all__ = ["JRTRNNConfig", "JRTRNNMemory"]


@dataclass(frozen=True, kw_only=True)
class JRTRNNConfig:
    d_model: int
    n_heads: int = 4
    feature_size: int = 16  # d: numbers of a query and a key, of which all products of two are features
    chunk_size: int = 64  # speed and rounding only: every chunk size computes the same function

    def __post_init__(self) -> None:
        check_taylor(self.d_model, self.n_heads, self.feature_size, self.chunk_size)

    def build(self) -> "JRTRNNMemory":
        return JRTRNNMemory(self)


class JRTRNNMemory(PrefixMemory[TaylorState]):
    def __init__(self, config: JRTRNNConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = TaylorHeads(config.d_model, config.n_heads, config.feature_size, config.chunk_size)
        self.encoder_key = Linear(config.d_model, config.n_heads * config.feature_size, bias=False)
        self.encoder_value = Linear(config.d_model, config.d_model, bias=False)
        for layer in (self.encoder_key, self.encoder_value):
            nn.init.normal_(layer.weight, std=config.d_model**-0.5)

    def init_state(self, batch_size: int) -> TaylorState:
        return self.heads.init_state(batch_size)

    def forward(self, x: Float[Tensor, "B T D"], state: TaylorState) -> tuple[Float[Tensor, "B T D"], TaylorState]:
        return self.heads(x, state)

    def advance(self, x: Float[Tensor, "B T D"], state: TaylorState) -> TaylorState:
        self.check_input(x, state)
        return self.heads.write(self.heads.key, self.heads.value, x, state)

    def encode(self, x: Float[Tensor, "B T D"], state: TaylorState, keep: Bool[Tensor, "B kept"] | None = None) -> TaylorState:
        """The state with the tokens of x that `keep` names (all where it is None) in the encoder's sum; nothing is read."""
        self.check_input(x, state)
        if keep is not None and keep.shape != x.shape[:2]:
            raise InputError(f"keep names tokens of x, one truth value each: [{x.shape[0]}, {x.shape[1]}], got {list(keep.shape)}")
        return self.heads.write(self.encoder_key, self.encoder_value, x, state, keep)

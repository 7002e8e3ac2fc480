"""LaMemo: what is remembered looks at what came after it, and is refreshed whenever a segment begins.

Source: LaMemo (Ji et al., arXiv:2204.07341). Transformer-XL keeps hidden states that know nothing to their right and grow stale.
LaMemo keeps the embeddings of the last M tokens and, for each layer, the attention each of them has collected so far: its result c
and the logarithm l of its normaliser. When a segment begins, a kept token i also attends to kept tokens after it, up to the
segment's first token p, and the two softmaxes are merged exactly:

    s_ij  = ((q_i + u) . k_j + (q_i + v)  . W_R R_(i-j)) / sqrt(K)     j <= i: a token of the segment, over memory and segment
    s+_ij = ((q_i + u) . k_j + (q_i + v+) . W_R R_(j-i)) / sqrt(K)     i < j <= p: a kept token; of these the last min(M, L)
    f_i, l+_i = softmax attention and log-sum-exp over s+
    c_i <- a_i c_i + (1 - a_i) f_i,   l_i <- log(e^l_i + e^l+_i),   a_i = e^l_i / (e^l_i + e^l+_i)

    h <- LN(h + W_O c),   h <- LN(h + FFN(h))                          kept tokens and the segment's alike, layer by layer

so that the keys of layer n come from states of layer n - 1 that were refreshed just now. u, v and v+ are shared by all layers. What
is kept at a border is cut from its graph, as in Transformer-XL. A single layer computes attention over the union of all keys seen;
deeper layers mix results that were collected at different times, by design.

State at a border: 4 B M ((n + 1) D + n H) bytes in float32; inside a segment the keys and values of memory and segment as well. The
memory is refreshed at a segment's first token, so tokens one by one equal whole segments.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.contract import empty
from memseq.errors import ConfigError
from memseq.layers.attention import check_heads
from memseq.layers.feedforward import FeedForward
from memseq.layers.linear import Linear
from memseq.layers.phases import by_phase
from memseq.layers.sizes import check_at_least_one
from memseq.models.language_model import LanguageModel
from memseq.ops.attention import band, merge
from memseq.ops.relative import relative_shift, sinusoids

__all__ = ["LaMemo", "LaMemoConfig", "LaMemoState"]


class LaMemoState(NamedTuple):
    embedded: Float[Tensor, "B M+L D"]  # of the kept tokens, newest last, then slot i: token i of the open segment
    collected: Float[Tensor, "B n M+L H K"]  # c of each layer, in the same places
    lse: Float[Tensor, "B n M+L H"]  # l, in float32 at least
    keys: Float[Tensor, "B n M+L H K"]  # of the open segment and the memory refreshed for it; nothing at a border
    values: Float[Tensor, "B n M+L H K"]
    position: Int[Tensor, "B"]  # tokens read, on the host


@dataclass(frozen=True, kw_only=True)
class LaMemoConfig:
    vocab_size: int
    d_model: int
    n_layers: int = 4
    n_heads: int = 4
    window: int = 64  # M: tokens kept
    segment_length: int = 64  # L
    look_ahead: int | None = None  # kept tokens that a kept token may newly see, the segment's first included; None: min(M, L); 0: none
    ff_mult: float = 4.0  # hidden units of the feedforward, in d_model
    dropout: float = 0.0  # of the embedding and of every residual branch

    def __post_init__(self) -> None:
        check_heads(self.d_model, self.n_heads, self.dropout)
        if self.d_model % 2:
            raise ConfigError(f"the sinusoids of distances need an even d_model, got {self.d_model}")
        check_at_least_one(self, "n_layers", "window", "segment_length")
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size must be at least 2, got {self.vocab_size}")
        if self.look_ahead is not None and not 0 <= self.look_ahead <= self.segment_length:
            most = f"segment_length={self.segment_length}"  # else a key would be seen, and counted, twice
            raise ConfigError(f"look_ahead must lie in 0 to {most} (each kept token is seen once), got {self.look_ahead}")
        if self.ff_mult <= 0:
            raise ConfigError(f"ff_mult must be above zero, got {self.ff_mult}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "LaMemoConfig":
        """The model of a `presets.Size`."""
        shape = {name: getattr(size, name) for name in ("d_model", "n_layers", "n_heads", "window", "segment_length")}
        return cls(vocab_size=vocab_size, **shape)

    def build(self) -> "LaMemo":
        return LaMemo(self)


class LaMemoLayer(nn.Module):
    """The projections of one layer; the biases u, v, v+ are the model's."""

    def __init__(self, config: LaMemoConfig) -> None:
        super().__init__()
        D = config.d_model
        self.n_heads = config.n_heads
        self.inputs = Linear(D, 3 * D, bias=False)  # queries, keys, values
        self.relative = Linear(D, D, bias=False)  # W_R
        self.out = Linear(D, D, bias=False)
        self.norm, self.ff_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.ff = FeedForward(D, round(config.ff_mult * D))
        self.dropout = nn.Dropout(config.dropout)
        for layer in (self.inputs, self.relative, self.out):
            nn.init.normal_(layer.weight, std=D**-0.5)

    def project(self, h: Float[Tensor, "B T D"]) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, T, H, K]."""
        return self.inputs(h).unflatten(-1, (3, self.n_heads, -1)).unbind(2)

    def collect(
        self, q: Tensor, k: Tensor, v: Tensor, biases: tuple[Tensor, Tensor], distances: Tensor, visible: Tensor
    ) -> tuple[Float[Tensor, "B T H K"], Float[Tensor, "B T H"]]:
        """Attention of the last T of S positions and its log-sum-exp; `distances` holds R_(S-1), ..., R_0."""
        content, position = ((q + bias).transpose(1, 2) for bias in biases)  # [B, H, T, K]
        by_distance = position @ self.relative(distances.to(q.dtype)).unflatten(-1, (self.n_heads, -1)).permute(1, 2, 0)
        scores = (content @ k.permute(0, 2, 3, 1) + relative_shift(by_distance, k.shape[1])) * q.shape[-1] ** -0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~visible, -torch.inf)
        lse = scores.logsumexp(-1)
        weights = (scores - lse[..., None]).exp()
        return (weights.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2), lse.transpose(1, 2)

    def think(self, h: Float[Tensor, "B T D"], c: Float[Tensor, "B T H K"]) -> Float[Tensor, "B T D"]:
        """What the next layer reads of positions that have collected c."""
        h = self.norm(h + self.dropout(self.out(c.flatten(2))))
        return self.ff_norm(h + self.dropout(self.ff(h)))


class LaMemo(LanguageModel[LaMemoState]):
    distances: Tensor

    def __init__(self, config: LaMemoConfig) -> None:
        super().__init__()
        self.config = config
        D, H = config.d_model, config.n_heads
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.layers = nn.ModuleList(LaMemoLayer(config) for _ in range(config.n_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.content_bias, self.past_bias, self.future_bias = (nn.Parameter(torch.empty(H, D // H)) for _ in range(3))
        for bias in (self.content_bias, self.past_bias, self.future_bias):
            nn.init.xavier_uniform_(bias)
        nn.init.normal_(self.embedding.weight, std=D**-0.5)
        far = torch.arange(config.window + config.segment_length).flip(0)
        self.register_buffer("distances", sinusoids(far, D), persistent=False)  # the farthest first, in float64

    def _apply(self, fn, recurse=True):
        """The sinusoids stay float64 wherever the weights go; each use rounds them once."""
        super()._apply(fn, recurse)
        far = torch.arange(len(self.distances), device=self.distances.device).flip(0)
        self.distances = sinusoids(far, self.config.d_model)
        return self

    @property
    def segment_length(self) -> int:
        return self.config.segment_length

    def init_state(self, batch_size: int) -> LaMemoState:
        c, w = self.config, self.embedding.weight
        places, heads = c.window + c.segment_length, (c.n_heads, c.d_model // c.n_heads)
        vectors = empty(w, batch_size, c.n_layers, places, *heads)
        return LaMemoState(
            empty(w, batch_size, places, c.d_model),
            vectors,
            empty(w, batch_size, c.n_layers, places, c.n_heads, dtype=torch.promote_types(w.dtype, torch.float32)),
            vectors,
            vectors,
            torch.zeros(batch_size, dtype=torch.int64),
        )

    def features(self, tokens: Int[Tensor, "B T"], state: LaMemoState) -> tuple[Float[Tensor, "B T D"], LaMemoState]:
        L, M = self.config.segment_length, self.config.window
        x, h = self.dropout(self.embedding(tokens) * math.sqrt(self.config.d_model)), []
        while x.shape[1]:
            own = state.position % L
            piece, x = x.tensor_split([L - int(own.max())], dim=1)
            held = (state.position - own).clamp(max=M)  # tokens in a row's memory
            y, state = by_phase(self._read, piece, state, own * (M + 1) + held)
            h.append(y)
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), state

    def _read(self, x: Tensor, state: LaMemoState) -> tuple[Tensor, LaMemoState]:
        """A piece inside the open segment; all rows have read `own` tokens of it after a memory of `held`."""
        c, M, n = self.config, self.config.window, x.shape[1]
        own = int(state.position[0]) % c.segment_length
        held = min(int(state.position[0]) - own, M)
        kept = state.embedded[:, M - held : M] if own == 0 and held else None  # to be refreshed now
        S = held + own + n
        visible, distances = band(n, S, None, device=x.device), self.distances[-S:]
        h, parts, start = x, [], M - held
        for i, layer in enumerate(self.layers):
            q, k, v = layer.project(h)
            if kept is not None:
                q_kept, k_kept, v_kept = layer.project(kept)
                k, v = torch.cat([k_kept, k], dim=1), torch.cat([v_kept, v], dim=1)
            elif own:
                k = torch.cat([state.keys[:, i, start : M + own], k], dim=1)
                v = torch.cat([state.values[:, i, start : M + own], v], dim=1)
            collected, lse = layer.collect(q, k, v, (self.content_bias, self.past_bias), distances, visible)
            h = layer.think(h, collected)
            if kept is not None:
                c_kept, lse_kept = self._look_ahead(layer, q_kept, k, v, state.collected[:, i, start:M], state.lse[:, i, start:M])
                kept = layer.think(kept, c_kept)
                collected, lse = torch.cat([c_kept, collected], dim=1), torch.cat([lse_kept, lse], dim=1)
            parts.append((collected, lse, k, v))
        collected, lse, k, v = (torch.stack(t, dim=1) for t in zip(*parts, strict=True))
        first = start if own == 0 else M + own  # where what was collected now belongs
        state = LaMemoState(
            _put(state.embedded, x, 1, M + own),
            _put(state.collected, collected, 2, first),
            _put(state.lse, lse, 2, first),
            _put(state.keys, k, 2, start),
            _put(state.values, v, 2, start),
            state.position + n,
        )
        return h, self._close(state) if own + n == c.segment_length else state

    def _look_ahead(self, layer: Any, q: Tensor, k: Tensor, v: Tensor, c: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Kept tokens see the last kept ones after themselves and the segment's first: the past of the reversed order."""
        held = q.shape[1]
        reach = min(held, self.config.segment_length) if self.config.look_ahead is None else min(held, self.config.look_ahead)
        if reach == 0:
            return c, lse
        k, v = k[:, : held + 1].flip(1), v[:, : held + 1].flip(1)
        place = torch.arange(held + 1, device=q.device)  # 0: the segment's first token
        visible = (place < place[1:, None]) & (place < reach)
        distances = self.distances[-(held + 1) :]
        f, lse_f = layer.collect(q.flip(1), k, v, (self.content_bias, self.future_bias), distances, visible)
        return merge(c, lse, f.flip(1), lse_f.flip(1))

    def _close(self, state: LaMemoState) -> LaMemoState:
        """The last M of memory and segment are kept, and the gradient ends here."""
        M, L = self.config.window, self.config.segment_length
        nothing = self.init_state(len(state.position))

        def keep(t: Tensor, dim: int) -> Tensor:
            last = t.detach().narrow(dim, L, M)
            return torch.cat([last, last.new_zeros(()).expand_as(t.narrow(dim, 0, L))], dim=dim)

        return nothing._replace(
            embedded=keep(state.embedded, 1), collected=keep(state.collected, 2), lse=keep(state.lse, 2), position=state.position
        )


def _put(buffer: Tensor, new: Tensor, dim: int, start: int) -> Tensor:
    """A buffer with `new` at `start`."""
    return buffer.slice_scatter(new.to(buffer.dtype), dim, start, start + new.shape[dim])

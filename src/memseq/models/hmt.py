"""HMT, the Hierarchical Memory Transformer: a segment is begun with what is remembered of what it is about.

Source: He et al., "HMT: Hierarchical Memory Transformer for Efficient Long Context Language Processing" (arXiv:2405.06067). Any `Backbone`
serves (`models/backbone.py`), a pretrained one too. Three memories: the last k tokens (sensory), one vector a segment (short-term), and
the last N of those vectors (long-term), from which one is recalled:

    S_n   = last of backbone([T ; E[summarised tokens] ; T])           what the segment is about; T is learned
    P_n   = sum_i softmax_i(S_n W_q . M_i W_k / sqrt(K)) M_i             over the kept vectors M; learned where there are none yet
    [. ; . ; h ; M_n] = backbone([P_n ; E[last k tokens] ; E[tokens] ; P_n])
    logits = head(h),   M_n joins the kept vectors, the oldest of more than N leaves

query = "previous": the end of the segment before is summarised, so that the model is causal: for language modelling and generation.
query = "current": the beginning of the segment itself is, as published. What stands before the first token then knows the first half of
its segment: for reading prompts and for answers, never for a perplexity. Such a model is an encoder of segments (`causal = False`): it
remembers the same however a stream is cut, and its outputs are the same for cuts between segments.

begin = "learned": the first segment reads P_0, which is learned (published). "nothing": it reads nothing and only writes, from P_0, so that
its logits are the backbone's: for pretrained models, to which a vector that says nothing is text such as they never saw.

With N = 1 and k = 0 it is RMT with one memory vector. State: 4 B N D bytes of vectors, the ids of the open segment and of the last k
tokens, and the backbone's cache of the open segment.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.linear import Linear
from memseq.layers.phases import by_phase
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.backbone import Backbone, build_backbone
from memseq.models.segments import OverBackbone, SegmentModel, as_large_as
from memseq.models.stack import StackConfig
from memseq.state import State

__all__ = ["HMT", "HMTConfig", "HMTState"]


class HMTState(NamedTuple):
    kept: Float[Tensor, "B N D"]  # newest last, zeros where there is none yet
    recalled: Float[Tensor, "B D"]  # P of the open segment
    cache: State  # the backbone's, of the open segment
    tokens: Int[Tensor, "B L"]  # ids of the open segment, on the host
    sensory: Int[Tensor, "B k"]  # ids before it, on the host
    count: Int[Tensor, "B"]  # kept vectors, on the host
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


@dataclass(frozen=True, kw_only=True)
class HMTConfig(OverBackbone):
    backbone: Any  # a StackConfig, or the config of a pretrained model
    segment_length: int = 64  # L, tokens; the backbone reads L + k + 2 inputs
    n_kept: int = 100  # N, segments whose vectors are kept
    n_sensory: int = 8  # k, tokens repeated before a segment
    n_summarised: int | None = None  # tokens that tell what a segment is about; None: half of a segment
    key_size: int | None = None  # K; None: d_model
    query: Literal["previous", "current"] = "previous"
    feed: Literal["raw", "normed"] = "raw"  # recalled vectors among embeddings: as they are, or as large as an embedding
    begin: Literal["learned", "nothing"] = "learned"  # what the first segment reads

    def __post_init__(self) -> None:
        for name, least in (("segment_length", 1), ("n_kept", 1), ("n_sensory", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.n_sensory > self.segment_length:
            raise ConfigError(f"n_sensory={self.n_sensory} tokens are taken from one segment of {self.segment_length}; use at most as many")
        if self.n_summarised is not None and not 1 <= self.n_summarised <= self.segment_length:
            raise ConfigError(f"n_summarised must lie in 1 to segment_length={self.segment_length}, got {self.n_summarised}")
        if self.query not in ("previous", "current"):
            raise ConfigError(f"query must be 'previous' or 'current', got {self.query!r}")
        if self.feed not in ("raw", "normed"):
            raise ConfigError(f"feed must be 'raw' or 'normed', got {self.feed!r}")
        if self.begin not in ("learned", "nothing"):
            raise ConfigError(f"begin must be 'learned' or 'nothing', got {self.begin!r}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "HMTConfig":
        """The model of a `presets.Size`: attention inside the segment, as many kept vectors as other systems have slots."""
        n_sensory = min(8, size.segment_length)
        inputs = size.segment_length + n_sensory + 2
        layer = SegmentAttentionConfig(d_model=size.d_model, n_heads=size.n_heads, segment_length=inputs)
        backbone = StackConfig(vocab_size=vocab_size, d_model=size.d_model, layers=size.n_layers * (layer,))
        return cls(backbone=backbone, segment_length=size.segment_length, n_kept=size.n_slots, n_sensory=n_sensory)

    @classmethod
    def around(cls, backbone: Any, **settings: Any) -> "HMTConfig":
        """What suits a pretrained network: recalled vectors as large as its embeddings, and none that say nothing."""
        suited: dict[str, Any] = {"feed": "normed", "begin": "nothing"}
        return cls(backbone=backbone, **suited | settings)

    def build(self, backbone: Backbone | None = None) -> "HMT":
        """The model, around `backbone` where one is given (it is not copied)."""
        return HMT(self, build_backbone(self.backbone) if backbone is None else backbone)


class HMT(SegmentModel[HMTState]):
    def __init__(self, config: HMTConfig, backbone: Backbone) -> None:
        super().__init__()
        self.config, self.backbone = config, backbone
        D, L = config.d_model, config.segment_length
        self.summarised = max(1, L // 2) if config.n_summarised is None else config.n_summarised
        self.inputs = L + config.n_sensory + 2
        backbone.check_length(self.inputs)
        prompt, initial = backbone.new_vectors(2)
        self.prompt = nn.Parameter(prompt.clone())  # T
        self.initial = nn.Parameter(initial.clone())  # P of the first segment
        self.query, self.key = (Linear(D, config.key_size or D, bias=False) for _ in range(2))
        if config.feed == "normed":
            self.gain = nn.Parameter(backbone.embedding.weight.detach().to(initial).std().expand(D).clone())

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.config.query == "previous"

    def init_state(self, batch_size: int) -> HMTState:
        c = self.config
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        return HMTState(
            kept=self.initial.new_zeros(batch_size, c.n_kept, c.d_model),
            recalled=self.initial.expand(batch_size, -1),
            cache=self.backbone.init_cache(batch_size, self.inputs),
            tokens=zeros[:, None].expand(-1, c.segment_length),
            sensory=zeros[:, None].expand(-1, c.n_sensory),
            count=zeros,
            position=zeros,
        )

    def features(self, tokens: Int[Tensor, "B T"], state: HMTState) -> tuple[Float[Tensor, "B T D"], HMTState]:
        """Rows of an encoder are cut at their own borders alone: a cut at another row's would change their outputs."""
        phase = torch.zeros_like(state.position) if self.causal else state.position
        return by_phase(super().features, tokens, state, phase)

    def read_rows(self, tokens: Int[Tensor, "B n"], state: HMTState) -> tuple[Float[Tensor, "B n D"], HMTState]:
        """The first segment of a stream has nothing before it: such rows are read apart."""
        return by_phase(super().read_rows, tokens, state, (state.count > 0).long())

    def read_piece(
        self, tokens: Int[Tensor, "B n"], state: HMTState, *, opens: bool, closes: bool
    ) -> tuple[Float[Tensor, "B n D"], HMTState]:
        held = self._hold(tokens, state)
        if self.causal:
            return self._read_on(tokens, held, opens=opens, closes=closes)
        return self._read_anew(tokens, held, closes=closes)

    def _read_on(self, tokens: Tensor, state: HMTState, *, opens: bool, closes: bool) -> tuple[Tensor, HMTState]:
        """After what the cache holds; the recall was made when the segment before ended."""
        x = self.backbone.embed(tokens)
        memory = self._fed(state.recalled)[:, None].to(x.dtype)
        before = self._before(memory, state) if opens else []
        inputs = torch.cat([*before, x, *([memory] * closes)], dim=1)
        first = sum(part.shape[1] for part in before)
        h, cache = self.backbone.read(inputs, None if opens and closes else state.cache)  # nothing is kept of what is read at once
        y = h[:, first : first + x.shape[1]]
        if not closes:
            return y, state._replace(cache=cache)
        state = self._keep(h[:, -1], state)
        return y, state._replace(recalled=self._recall(state, self._last_ids(state)))

    def _read_anew(self, tokens: Tensor, state: HMTState, *, closes: bool) -> tuple[Tensor, HMTState]:
        """The whole segment as far as it is known, after a recall by its own beginning."""
        n = int(state.position[0]) if not closes else self.config.segment_length
        ids = state.tokens[:, :n].to(tokens.device)
        recalled = self._recall(state, ids[:, : self.summarised])
        x = self.backbone.embed(ids)
        memory = self._fed(recalled)[:, None].to(x.dtype)
        h, _ = self.backbone.read(torch.cat([*self._before(memory, state), x, *([memory] * closes)], dim=1), None)
        end = h.shape[1] - closes
        y = h[:, end - tokens.shape[1] : end]
        return y, self._keep(h[:, -1], state) if closes else state

    def _hold(self, tokens: Tensor, state: HMTState) -> HMTState:
        """The ids of the open segment with the piece's."""
        ids = tokens.detach().to("cpu", torch.int64)
        places = state.position[:, None] + torch.arange(ids.shape[1])
        return state._replace(tokens=state.tokens.scatter(1, places, ids), position=state.position + ids.shape[1])

    def _before(self, memory: Tensor, state: HMTState) -> list[Tensor]:
        """What stands before the segment: memory, and the embedded tokens before it; none before the first. Rows are alike in this."""
        if int(state.count[0]) == 0:
            return [memory] if self.config.begin == "learned" else []
        sensory = [self.backbone.embed(state.sensory.to(self.initial.device))] if self.config.n_sensory else []
        return [memory, *sensory]

    def _keep(self, memory: Tensor, state: HMTState) -> HMTState:
        """The segment's vector is kept, its last tokens stay for the next one."""
        N, k = self.config.n_kept, self.config.n_sensory
        kept = torch.cat([state.kept[:, 1:], memory[:, None].to(state.kept.dtype)], dim=1)
        new = self.init_state(len(memory))
        sensory = state.tokens[:, self.config.segment_length - k :].clone()
        return new._replace(kept=kept, count=(state.count + 1).clamp(max=N), sensory=sensory, tokens=state.tokens)

    def _last_ids(self, state: HMTState) -> Tensor:
        return state.tokens[:, self.config.segment_length - self.summarised :].to(self.initial.device)

    def _recall(self, state: HMTState, about: Int[Tensor, "B j"]) -> Float[Tensor, "B D"]:
        """P for a segment that is about `about`."""
        if int(state.count[0]) == 0:
            return self.initial.expand(len(about), -1)
        weights = self.attend(self.summarise(about), state)
        with torch.autocast(weights.device.type, enabled=False):
            return (weights[:, None] @ state.kept)[:, 0]

    def summarise(self, about: Int[Tensor, "B j"]) -> Float[Tensor, "B D"]:
        """S, what these tokens are about."""
        x = self.backbone.embed(about)
        ends = self._fed(self.prompt).to(x.dtype).expand(len(x), 1, -1)
        return self.backbone.read(torch.cat([ends, x, ends], dim=1), None)[0][:, -1]

    def attend(self, summary: Float[Tensor, "B D"], state: HMTState) -> Float[Tensor, "B N"]:
        """The weights of the kept vectors in a recall: which segment a summary calls."""
        dtype = state.kept.dtype
        with torch.autocast(summary.device.type, enabled=False):
            q, k = self.query(summary.to(dtype)), self.key(state.kept)
            scores = (k @ q[..., None])[..., 0] * q.shape[-1] ** -0.5
            N = self.config.n_kept
            known = (torch.arange(N) >= N - state.count[:, None]).to(scores.device)
            return scores.masked_fill(~known, -torch.inf).softmax(-1)

    def _fed(self, memory: Tensor) -> Tensor:
        """A vector as it stands among embeddings."""
        return memory if self.config.feed == "raw" else as_large_as(self.gain, memory)

"""A pretrained BART as an `EncoderDecoder`: the network that MemBART wraps.

    network = BartBackbone(BartForConditionalGeneration.from_pretrained(name))
    config  = BartBackboneConfig.of(hf_model)             what is written to disk; build() makes new weights

The model is used as it is. The encoder's layers are read part by part, since two streams attend in each; the decoder is called whole,
with a cache of transformers' kind whose tensors are a state of ours (`segment_cache.py`) and are never written in place.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import empty
from memseq.errors import ConfigError, MissingExtraError, TrainingError
from memseq.models.encoder_decoder import EncoderDecoder
from memseq.ops.memformer import split_heads
from memseq.retrofit.backbone import HuggingFaceConfig, score_by_head
from memseq.retrofit.segment_cache import KeysAndValues, SegmentCache

try:
    from transformers import BartForConditionalGeneration
    from transformers.cache_utils import EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.modeling_utils import PreTrainedModel
except ModuleNotFoundError:
    raise MissingExtraError("transformers", extra="hf") from None

__all__ = ["BartBackbone", "BartBackboneConfig", "Response"]


@dataclass(frozen=True, kw_only=True)
class BartBackboneConfig(HuggingFaceConfig):
    """`BartBackboneConfig.of(hf_model)`; `lora` as in `HuggingFaceConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hub.model_type != "bart":
            raise ConfigError(f"an encoder-decoder must be a BART, got the config of a {self.hub.model_type!r}")

    def build(self) -> "BartBackbone":
        model = BartForConditionalGeneration(cast(Any, self.hub))
        self.put_adapter(model)
        return BartBackbone(model, self)

    def around(self, model: PreTrainedModel) -> "BartBackbone":
        return BartBackbone(model, self)


class Response(NamedTuple):
    """The decoder's cache: keys and values of what it read, and those of what it answers, a tensor a layer."""

    own: KeysAndValues
    keys: tuple[Float[Tensor, "B H S K"], ...]
    values: tuple[Float[Tensor, "B H S K"], ...]


class BartBackbone(EncoderDecoder):
    def __init__(self, model: PreTrainedModel, config: BartBackboneConfig | None = None) -> None:
        super().__init__()
        if not isinstance(model, BartForConditionalGeneration):
            raise ConfigError(f"an encoder-decoder must be a BartForConditionalGeneration, got {type(model).__name__}")
        hub: Any = model.config
        if hub.encoder_layerdrop or hub.decoder_layerdrop:
            raise ConfigError(
                "a model that drops whole layers in training cannot be replayed layer by layer; set encoder_layerdrop and"
                " decoder_layerdrop of its config to 0"
            )
        self.config = BartBackboneConfig.of(model) if config is None else config
        self.model = model  # with its head
        self.start = hub.decoder_start_token_id
        self.begin = self.start if hub.bos_token_id is None else hub.bos_token_id

    @property
    def encoder_layers(self) -> nn.ModuleList:
        return self._encoder.layers

    @property
    def n_layers(self) -> int:
        return len(self.encoder_layers)

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    @property
    def draws(self) -> bool:
        hub: Any = self.model.config
        rates = (hub.dropout, hub.attention_dropout, hub.activation_dropout)
        return any(rates) or any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules())

    @property
    def _encoder(self) -> Any:
        return self.model.model.encoder

    @property
    def _decoder(self) -> Any:
        return self.model.model.decoder

    def check_length(self, length: int) -> None:
        most = cast(Any, self.model.config).max_position_embeddings
        if length > most:
            raise ConfigError(
                f"the backbone has max_position_embeddings={most} and would read turns of {length};"
                f" make segment_length at least {length - most} shorter"
            )

    def embed_source(self, tokens: Int[Tensor, "B n"], *, noisy: bool = True) -> Float[Tensor, "B n D"]:
        encoder = self._encoder
        x = encoder.layernorm_embedding(encoder.embed_tokens(tokens) + encoder.embed_positions(tokens))
        return F.dropout(x, encoder.dropout, noisy and encoder.training)

    def empty_response(self, batch_size: int, encoded: int, length: int) -> Response:
        keys, values = (self._nothing(batch_size, encoded) for _ in range(2))
        return Response(self._unread(batch_size, length), keys, values)

    def open(self, encoded: Float[Tensor, "B S D"], length: int) -> Response:
        keys, values = [], []
        for layer in self._decoder.layers:
            attention = layer.encoder_attn
            keys.append(split_heads(attention.k_proj(encoded), attention.num_heads).to(encoded.dtype))
            values.append(split_heads(attention.v_proj(encoded), attention.num_heads).to(encoded.dtype))
        return Response(self._unread(len(encoded), length), tuple(keys), tuple(values))

    def _unread(self, B: int, length: int) -> KeysAndValues:
        return KeysAndValues(self._nothing(B, length), self._nothing(B, length), torch.zeros(B, dtype=torch.int64))

    def _nothing(self, B: int, length: int) -> tuple[Tensor, ...]:
        """Of every decoder layer, keys or values that are still to come."""
        attentions = [layer.self_attn for layer in self._decoder.layers]
        return tuple(empty(self.embedding.weight, B, a.num_heads, length, a.head_dim) for a in attentions)

    def decode(
        self, tokens: Int[Tensor, "B n"], cache: Response, seen: Bool[Tensor, "B S"] | None
    ) -> tuple[Float[Tensor, "B n D"], Response]:
        S = cache.keys[0].shape[2]
        own = SegmentCache(cache.own)
        answered = SegmentCache(KeysAndValues(cache.keys, cache.values, torch.full((len(tokens),), S)))  # as if read: it is used as it is
        shape = empty(self.embedding.weight, len(tokens), S, self.embedding.embedding_dim)  # the decoder asks its sizes alone
        h = self._run(tokens, shape, seen, past_key_values=EncoderDecoderCache(own, answered))
        return h, Response(own.state(tokens.shape[1]), cache.keys, cache.values)

    def decode_whole(
        self, tokens: Int[Tensor, "B n"], encoded: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B n D"]:
        return self._run(tokens, encoded, seen)

    def _run(self, tokens: Tensor, encoded: Tensor, seen: Tensor | None, **cache: Any) -> Tensor:
        decoder = self._decoder
        if self.training and torch.is_grad_enabled() and any(layer.gradient_checkpointing for layer in decoder.layers):
            raise TrainingError(
                "gradient checkpointing inside the backbone drops its cache; switch it off: memory replay keeps one segment"
            )
        return decoder(
            input_ids=tokens, encoder_hidden_states=encoded, encoder_attention_mask=seen, use_cache=bool(cache), return_dict=True, **cache
        ).last_hidden_state

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.model.get_output_embeddings()(h) + cast(Any, self.model).final_logits_bias[0]

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return score_by_head(self.head, h, targets, self.embedding.num_embeddings)

    def generate(self, encoded: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"], **options: Any) -> Int[Tensor, "B n"]:
        """By transformers' `generate`, which expands what is attended to for beams."""
        given = BaseModelOutput(last_hidden_state=cast(Any, encoded))
        return cast(Any, self.model).generate(encoder_outputs=given, attention_mask=seen.long(), **options)

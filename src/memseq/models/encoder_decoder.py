"""What MemBART asks of an encoder-decoder network: its encoder layer by layer, its decoder in any pieces.

    x        = network.embed_source(tokens)              then the encoder's layers, which `layers/dual_stream.py` runs beside the slots'
    cache    = network.open(encoded)                      a response to what was encoded begins
    h, cache = network.decode(tokens, cache, seen)        the decoder: causal, in any pieces

`encoded` [B, S, D] is what the decoder attends to; `seen` [B, S] hides places of it. One such network exists: a pretrained BART
(`retrofit/encoder_decoder.py`).
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.models.backbone import Backbone
from memseq.state import State

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Backbone):
    takes_mask = False
    begin: int  # the token that the encoder reads where nothing was said before
    start: int  # the token that opens a response

    @property
    def encoder_layers(self) -> nn.ModuleList:
        """Layers with the parts that `layers/dual_stream.py` names."""
        raise TypeError(f"{type(self).__name__} must define encoder_layers")

    @property
    def draws(self) -> bool:
        """Whether a pass in training draws random numbers (dropout)."""
        raise TypeError(f"{type(self).__name__} must define draws")

    def embed_source(self, tokens: Int[Tensor, "B n"], *, noisy: bool = True) -> Float[Tensor, "B n D"]:
        """What the encoder's first layer reads; with dropout where `noisy` and in training."""
        raise TypeError(f"{type(self).__name__} must define embed_source(tokens)")

    def empty_response(self, batch_size: int, encoded: int, length: int) -> State:
        """The cache before a response of at most `length` inputs to `encoded` vectors."""
        raise TypeError(f"{type(self).__name__} must define empty_response(batch_size, encoded, length)")

    def open(self, encoded: Float[Tensor, "B S D"], length: int) -> State:
        """The cache of a response to `encoded` that has read nothing yet."""
        raise TypeError(f"{type(self).__name__} must define open(encoded, length)")

    def decode(self, tokens: Int[Tensor, "B n"], cache: Any, seen: Bool[Tensor, "B S"] | None) -> tuple[Float[Tensor, "B n D"], State]:
        """The decoder on tokens after what the cache holds; rows are at one position."""
        raise TypeError(f"{type(self).__name__} must define decode(tokens, cache, seen)")

    def decode_whole(
        self, tokens: Int[Tensor, "B n"], encoded: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"] | None
    ) -> Float[Tensor, "B n D"]:
        """The decoder on a response from its beginning, of which nothing is kept."""
        return self.decode(tokens, self.open(encoded, tokens.shape[1]), seen)[0]

    def generate(self, encoded: Float[Tensor, "B S D"], seen: Bool[Tensor, "B S"], **options: Any) -> Int[Tensor, "B n"]:
        """A response to `encoded`."""
        raise ConfigError(f"{type(self).__name__} cannot generate by itself; use a Session, or step()")

    def init_cache(self, batch_size: int, length: int) -> State:
        raise ConfigError(f"{type(self).__name__} is an encoder and a decoder, and this system wraps a causal model; use 'membart'")

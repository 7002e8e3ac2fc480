"""Memformer as published: an encoder that reads and writes the memory, and a decoder that predicts the next segment.

Source: Memformer (Wu et al., arXiv:2010.06891), segment-level language model and sequence-to-sequence.

    H_s, M_s = Enc(s_s, M_{s-1})       bidirectional inside a segment; every layer reads M_{s-1}; slots are written from H_s
    P(s_{s+1} | past) = prod_n Dec(x_n | x_{<n} of the segment, H_s)        the decoder meets the memory through H_s alone

    encoder layer:  u += SelfAttn(LN u);    u += Read(LN u, M_{s-1});  u += FFN(LN u);   H = LN u
    decoder layer:  v += CausalSelf(LN v);  v += Read(LN v, H_s);      v += FFN(LN v);   logits = LN v  E^T

A token is read twice: by the decoder as it arrives, and by the encoder when its segment is full. The decoder's input
for the first place of a segment is the last token of the segment before (at the start, a begin token of the model's
own), so `logits[:, i]` predicts the token after `tokens[:, i]` and a segment's last token already sees its own H.
Before the first segment H is the encoding of the begin token alone; one vector shown L times attends like one.

State: the slots (4 B N D bytes), H (4 B L D), the last token, and of the open segment its tokens and the decoder's keys
and values (four bytes each between two segments).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError, InputError
from memseq.layers.attention import Heads
from memseq.layers.slots import SlotReader, SlotsConfig, SlotState
from memseq.memories.segment_attention import SegmentAttentionConfig
from memseq.models.language_model import LanguageModel
from memseq.models.stack import Block
from memseq.ops.attention import attend
from memseq.ops.cross_entropy import IGNORE, linear_cross_entropy
from memseq.state import State, choose

__all__ = ["MemformerEncDec", "MemformerEncDecConfig", "MemformerEncDecState"]


@dataclass(frozen=True, kw_only=True)
class MemformerEncDecConfig:
    """The segment length is that of `slots`; encoder and decoder share width, heads and embedding."""

    vocab_size: int
    d_model: int
    slots: SlotsConfig
    n_heads: int = 4
    n_encoder_layers: int = 4
    n_decoder_layers: int = 4
    ff_mult: float = 4.0  # hidden units of the feedforward, in d_model
    dropout: float = 0.0  # of the embedding and of every residual branch

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size must be at least 2, got {self.vocab_size}")
        if self.slots.d_model != self.d_model:
            raise ConfigError(f"slots has d_model={self.slots.d_model} and the model d_model={self.d_model}; make them equal")
        if self.d_model % self.n_heads:
            near = self.n_heads * max(1, round(self.d_model / self.n_heads))
            raise ConfigError(f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads; use d_model={near}")
        if self.n_encoder_layers < 1 or self.n_decoder_layers < 1:
            raise ConfigError(f"encoder and decoder need a layer each, got {self.n_encoder_layers} and {self.n_decoder_layers}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "MemformerEncDecConfig":
        """The model of a `presets.Size`: its layers are halved between encoder and decoder."""
        slots = SlotsConfig(d_model=size.d_model, n_heads=size.n_heads, n_slots=size.n_slots, segment_length=size.segment_length)
        return cls(
            vocab_size=vocab_size,
            d_model=size.d_model,
            n_heads=size.n_heads,
            n_encoder_layers=size.n_layers - size.n_layers // 2,
            n_decoder_layers=size.n_layers // 2,
            slots=slots,
        )

    def build(self) -> "MemformerEncDec":
        return MemformerEncDec(self)


class MemformerEncDecState(NamedTuple):
    slots: SlotState  # M of the last closed segment; written at once, so its running softmax stays empty
    encoded: Float[Tensor, "B L D"]  # H of the last closed segment,
    reach: Int[Tensor, "B"]  # and how many rows of it there are: L, unless a source ended short; on the host
    decoder: tuple[tuple[State, ...], ...]  # keys and values of the open segment, a decoder layer each
    last: Int[Tensor, "B"]  # the token before the open segment, on the host
    tokens: Int[Tensor, "B L"]  # of the open segment, on the host
    position: Int[Tensor, "B"]  # how many they are


class EncoderLayer(nn.Module):
    def __init__(self, config: MemformerEncDecConfig) -> None:
        super().__init__()
        self.heads = Heads(config.d_model, config.n_heads, rotary_base=10000.0)
        self.norm = nn.LayerNorm(config.d_model)
        self.read = SlotReader(config.d_model, config.n_heads)
        self.read_norm = nn.LayerNorm(config.d_model)
        self.block = Block(config, ())  # the feedforward

    def forward(self, x: Tensor, slots: Tensor, dropout: nn.Module) -> Tensor:
        q, k, v = self.heads(self.norm(x), torch.arange(x.shape[1], device=x.device))
        x = x + dropout(self.heads.write(attend(q, k, v)))
        x = x + dropout(self.read(self.read_norm(x), slots))
        return x + dropout(self.block.ff(self.block.ff_norm(x)))


class DecoderLayer(nn.Module):
    def __init__(self, config: MemformerEncDecConfig) -> None:
        super().__init__()
        attention = SegmentAttentionConfig(d_model=config.d_model, n_heads=config.n_heads, segment_length=config.slots.segment_length)
        self.block = Block(config, attention)
        self.read = SlotReader(config.d_model, config.n_heads)
        nn.init.normal_(self.read.out.weight, std=(config.d_model * 3 * config.n_decoder_layers) ** -0.5)
        self.read_norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, encoded: Tensor, reach: Tensor | None, states: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        x, states = self.block.remember(x, states)
        x = x + self.dropout(self.read(self.read_norm(x), encoded, reach))
        return self.block.think(x), states


class MemformerEncDec(LanguageModel[MemformerEncDecState]):
    def __init__(self, config: MemformerEncDecConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.begin = nn.Parameter(torch.randn(D) * D**-0.5)  # the embedding of the begin token, id -1 in the state
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.encoder_norm = nn.LayerNorm(D)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))
        self.decoder_norm = nn.LayerNorm(D)
        self.write = config.slots.build()
        self.dropout = nn.Dropout(config.dropout)
        with torch.no_grad():
            nn.init.normal_(self.embedding.weight, std=D**-0.5)
            layers: list[Any] = [*self.encoder, *self.decoder]
            for layer in layers:
                nn.init.normal_(layer.block.ff.up.weight, std=D**-0.5)
                depth = 3 * max(config.n_encoder_layers, config.n_decoder_layers)
                nn.init.normal_(layer.block.ff.down.weight, std=(layer.block.ff.down.in_features * depth) ** -0.5)

    @property
    def segment_length(self) -> int:
        return self.config.slots.segment_length

    def init_state(self, batch_size: int) -> MemformerEncDecState:
        L = self.segment_length
        slots = self.write.init_state(batch_size)
        one = slots._replace(slots=slots.slots[:1])
        encoded = self._encode(self.begin[None, None], one.slots, nn.Identity()).to(slots.slots.dtype)
        zero = torch.zeros(batch_size, dtype=torch.int64)
        return MemformerEncDecState(
            slots,
            encoded.expand(batch_size, L, -1),
            torch.full((batch_size,), L),
            self._empty_decoder(batch_size),
            torch.full((batch_size,), -1, dtype=torch.int64),
            torch.zeros((), dtype=torch.int64).expand(batch_size, L),
            zero,
        )

    def _empty_decoder(self, batch_size: int) -> tuple[tuple[State, ...], ...]:
        return tuple(layer.block.init_state(batch_size) for layer in self.decoder)

    def _encode(self, x: Float[Tensor, "B n D"], slots: Float[Tensor, "B N D"], dropout: nn.Module | None = None) -> Float[Tensor, "B n D"]:
        """An initial state is made without dropout: it is the same whenever it is asked for."""
        for layer in self.encoder:
            x = layer(x, slots, dropout or self.dropout)
        return self.encoder_norm(x)

    def _decode(
        self, x: Tensor, state: MemformerEncDecState, states: tuple[tuple[State, ...], ...]
    ) -> tuple[Tensor, tuple[tuple[State, ...], ...]]:
        """Decoder layers on x [B, n, D], after their own `states`, against the encoding that `state` holds."""
        after = []
        reach = state.reach if bool((state.reach < self.segment_length).any()) else None
        for layer, own in zip(self.decoder, states, strict=True):
            x, own = layer(x, state.encoded, reach, own)
            after.append(own)
        return self.decoder_norm(x), tuple(after)

    def _embed(self, tokens: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
        """Embeddings on the model's device; id -1 is the begin token."""
        tokens = tokens.to(self.begin.device)
        return torch.where((tokens >= 0)[..., None], self.embedding(tokens.clamp_min(0)), self.begin)

    def features(self, tokens: Int[Tensor, "B T"], state: MemformerEncDecState) -> tuple[Float[Tensor, "B T D"], MemformerEncDecState]:
        h = []
        while tokens.shape[1] > 0:
            piece, tokens = tokens.tensor_split([self.segment_length - int(state.position.max())], dim=1)
            y, state = self._read_piece(piece, state)
            h.append(y)
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), state

    def advance(self, tokens: Int[Tensor, "B T"], state: MemformerEncDecState) -> MemformerEncDecState:
        """Segments that close in every row need the encoder alone; the decoder reads what stays open.

        With dropout the decoder is run all the same: replay must draw what `features` draws, in the same order.
        """
        self.check_input(tokens, state)
        if self.training and self.config.dropout > 0:
            return self.features(tokens, state)[1]
        while tokens.shape[1] > 0:
            piece, tokens = tokens.tensor_split([self.segment_length - int(state.position.max())], dim=1)
            if bool((state.position + piece.shape[1] == self.segment_length).all()):
                state = self._close(self._append(piece, state))
            else:
                state = self._read_piece(piece, state)[1]
        return state

    def _read_piece(self, piece: Int[Tensor, "B n"], state: MemformerEncDecState) -> tuple[Tensor, MemformerEncDecState]:
        """Tokens that lie in one segment in every row: rows that fill it are encoded, and their last token decoded anew."""
        fresh = state.position == 0
        x = self.dropout(self._embed(piece))
        decoder = state.decoder
        if fresh.all():  # the token before the segment comes first
            x = torch.cat([self.dropout(self._embed(state.last[:, None])), x], dim=1)
        elif fresh.any():
            opened = self._decode(self.dropout(self._embed(state.last[:, None])), state, self._empty_decoder(len(piece)))[1]
            decoder = choose(fresh, opened, decoder)
        full = state.position + piece.shape[1] == self.segment_length
        whole = x if not full.any() else x[:, :-1]  # a segment's last token opens the next segment of the decoder
        opened_here = x.shape[1] - piece.shape[1]
        y = x.new_zeros(len(piece), 0, x.shape[2])
        if whole.shape[1] > 0:
            y, decoder = self._decode(whole, state, decoder)
            y = y[:, opened_here:]
        after = self._append(piece, state)._replace(decoder=decoder)
        if not full.any():
            return y, after
        closed = self._close(after)
        last, _ = self._decode(x[:, -1:], closed, self._empty_decoder(len(piece)))
        if not full.all():
            other, decoder = self._decode(x[:, -1:], state, decoder)
            last = choose(full, last, other)
            closed = choose(full, closed, after._replace(decoder=decoder))
        return torch.cat([y, last], dim=1), closed

    def _append(self, piece: Int[Tensor, "B n"], state: MemformerEncDecState) -> MemformerEncDecState:
        """The open segment's tokens with `piece` behind them."""
        n, L = piece.shape[1], self.segment_length
        if n == L:
            return state._replace(tokens=piece, position=state.position + n)  # a whole segment: on the device as it came
        place = torch.arange(L) - state.position[:, None]  # of each place of the segment in the piece
        taken = piece.cpu().gather(1, place.clamp(0, n - 1))
        tokens = torch.where((place >= 0) & (place < n), taken, state.tokens)
        return state._replace(tokens=tokens, position=state.position + n)

    def _close(self, state: MemformerEncDecState) -> MemformerEncDecState:
        """Encode the open segment as full, write the slots, and open the next."""
        B, L = state.tokens.shape
        encoded = self._encode(self.dropout(self._embed(state.tokens)), state.slots.slots)
        return MemformerEncDecState(
            self.write(encoded, state.slots),
            encoded.to(state.slots.slots.dtype),
            torch.full((B,), L),
            self._empty_decoder(B),
            state.tokens[:, -1].cpu().clone(),
            torch.zeros((), dtype=torch.int64).expand(B, L),
            torch.zeros(B, dtype=torch.int64),
        )

    # Sequence to sequence: the source is read by the encoder alone, the target is a stream that goes on from there.

    def read_source(self, source: Int[Tensor, "B T"], state: MemformerEncDecState) -> MemformerEncDecState:
        """Encode a source [B, T] and write it to the slots; its ragged last segment is closed as short as it is.

        The state that comes back reads a target by the ordinary law; `predict_first` gives the logits of its first token.
        Raises `InputError` unless every row stands at a segment's border.
        """
        self.check_input(source, state)
        if bool(state.position.any()):
            raise InputError(f"a source begins at a segment's border; the rows stand {state.position.tolist()} tokens into one")
        slots = state.slots
        for segment in source.split(self.segment_length, dim=1):
            encoded = self._encode(self.dropout(self._embed(segment)), slots.slots)
            short = self.segment_length - segment.shape[1]
            slots = self.write(encoded, slots._replace(position=slots.position + short))
        encoded = nn.functional.pad(encoded.to(slots.slots.dtype), (0, 0, 0, short))
        begin = torch.full_like(state.last, -1)
        return state._replace(slots=slots, encoded=encoded, reach=torch.full_like(begin, self.segment_length - short), last=begin)

    def predict_first(self, state: MemformerEncDecState) -> Float[Tensor, "B V"]:
        """Logits of the first token after a segment's border, such as the first token of a target."""
        return self.head(self._first(state)[:, 0])

    def _first(self, state: MemformerEncDecState) -> Float[Tensor, "B 1 D"]:
        x = self.dropout(self._embed(state.last[:, None]))
        return self._decode(x, state, self._empty_decoder(len(x)))[0]

    def target_loss(
        self, target: Int[Tensor, "B U"], state: MemformerEncDecState
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""], MemformerEncDecState]:
        """As `loss`, of every token of `target` [B, U] from the first on, after `read_source`; -100 is not scored and ends a row."""
        h, tokens = self._first(state), target.clamp_min(0)
        if target.shape[1] > 1:
            rest, state = self.features(tokens[:, :-1], state)
            h = torch.cat([h, rest], dim=1)
        total = linear_cross_entropy(h.flatten(0, 1), self.embedding.weight, target.flatten())
        return total, (target != IGNORE).sum(), state

"""MemBART: slots that run beside the tokens through the encoder of a pretrained encoder-decoder, and are kept from turn to turn.

Source: Wu & Yu, "Stateful Memory-Augmented Transformers for Efficient Dialogue Modeling" (arXiv:2209.07634). Of a turn's tokens s_t:

    M'            = LN(M_{t-1} + b)                        b is learned: what is forgotten goes towards it
    m, x          = both streams (M', E[s_t])              `layers/dual_stream.py`; slots begin with copies of the encoder's weights
    a             = sigmoid(w_2 . GELU(W_1 m + b_1) + b_2)  one number a slot
    M_t           = a m + (1 - a) M'
    P(reply | ..) = decoder(reply | [M_t; x])              M_0 = 0

Two ways to read. As a stream, like every language model here: each segment of L tokens is a turn, and the decoder predicts the next
segment from it, beginning with its start token, so that `logits[:, i]` predicts the token after `tokens[:, i]`; before the first turn
it attends to the encoding of a begin token, which writes nothing. As a dialogue: `read_source` encodes a turn of at most L tokens
and writes it, `reply` and `target_loss` answer it; a reply enters the memory when it is read as part of a turn.

State: the slots (4 B N D bytes); at a border what the decoder will attend to (N + L vectors); inside a segment instead its keys and
values, the decoder's own, and the ids of the segment.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.contract import empty
from memseq.errors import ConfigError, InputError
from memseq.layers.dual_stream import SlotLayer, both_streams, seen_by_both
from memseq.layers.phases import by_phase
from memseq.models.encoder_decoder import EncoderDecoder
from memseq.models.segments import OverBackbone, SegmentModel, check_segments
from memseq.ops.cross_entropy import IGNORE
from memseq.state import State, choose

__all__ = ["MemBART", "MemBARTConfig", "MemBARTState"]


class MemBARTState(NamedTuple):
    slots: Float[Tensor, "B N D"]  # M of the last turn
    encoded: Float[Tensor, "B S D"]  # at a border: M and x, S = N + L, for the decoder to attend to
    reach: Int[Tensor, "B"]  # how many tokens there are in x, on the host: L, unless a turn was short
    response: State  # inside a segment: the decoder's cache
    tokens: Int[Tensor, "B L"]  # ids of the open segment, on the host
    position: Int[Tensor, "B"]  # how many they are, on the host


@dataclass(frozen=True, kw_only=True)
class MemBARTConfig(OverBackbone):
    encoder_decoder: ClassVar[bool] = True  # the kind of network it wraps

    backbone: Any  # the config of an `EncoderDecoder`
    n_slots: int = 64
    segment_length: int = 128  # L: tokens of a turn that the encoder reads, the decoder as many
    bias_std: float = 0.01  # of b; slots differ by it alone at the start, so that it must be well above sqrt(1e-5)
    gate_std: float = 0.02  # of w_2 and W_1: that of the backbone's own weights, which is 0.02 in BART
    gate_bias: float = 0.0  # b_2; 0 is the paper: half of a slot is new in every turn, until it learns; -2 keeps 88 %

    def __post_init__(self) -> None:
        check_segments(self)
        if self.bias_std <= 0:
            raise ConfigError(f"bias_std must be above 0, since slots without a difference stay alike; got {self.bias_std}")
        if self.gate_std <= 0:
            raise ConfigError(f"gate_std must be above 0, since a gate of no weights learns nothing of W_1; got {self.gate_std}")

    def build(self, backbone: EncoderDecoder | None = None) -> "MemBART":
        """The model, around `backbone` where one is given (it is not copied)."""
        return MemBART(self, self.backbone.build() if backbone is None else backbone)


class MemBART(SegmentModel[MemBARTState]):
    backbone: EncoderDecoder  # ty: ignore[incompatible-mutable-override]

    def __init__(self, config: MemBARTConfig, backbone: EncoderDecoder) -> None:
        super().__init__()
        if not isinstance(backbone, EncoderDecoder):
            raise ConfigError(
                f"MemBART wraps an encoder-decoder such as BART, got {type(config.backbone).__name__}; use 'rmt', 'armt' or 'hmt' for a"
                " causal model"
            )
        backbone.check_length(config.segment_length)
        self.config, self.backbone = config, backbone
        D = config.d_model
        first: Any = backbone.encoder_layers[0]
        like = first.final_layer_norm.weight.detach()
        kept = torch.promote_types(like.dtype, torch.float32)
        self.bias = nn.Parameter(config.bias_std * torch.randn_like(like.new_empty(config.n_slots, D, dtype=kept)))
        self.bias.no_decay = True  # ty: ignore[missing-attribute]  # its length is the rate of forgetting
        self.norm = nn.LayerNorm(D).to(like)
        self.slot_layers = nn.ModuleList(SlotLayer(layer) for layer in backbone.encoder_layers)
        self.gate = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, 1)).to(like)
        with torch.no_grad():
            for layer, bias in ((self.gate[0], 0.0), (self.gate[2], config.gate_bias)):
                layer.weight.normal_(std=config.gate_std)
                layer.bias.fill_(bias)

    # ------------------------------------------------------------------------------------------------------- the memory

    def init_state(self, batch_size: int) -> MemBARTState:
        slots = self.bias.new_zeros(self.bias.shape, dtype=torch.promote_types(self.bias.dtype, torch.float32))
        begin = torch.full((1, 1), self.backbone.begin, device=slots.device)
        _, encoded = self.encode(begin, slots[None], noisy=False)
        L, position = self.segment_length, torch.zeros(batch_size, dtype=torch.int64)
        encoded = F.pad(encoded, (0, 0, 0, L - 1)).expand(batch_size, -1, -1)
        return self._opened(slots.expand(batch_size, -1, -1), encoded, torch.ones_like(position))

    def _opened(self, slots: Tensor, encoded: Tensor, reach: Tensor) -> MemBARTState:
        """A border: nothing of the next segment was read."""
        B, S = encoded.shape[:2]
        response, zero = self.backbone.empty_response(B, S, self.segment_length), torch.zeros((), dtype=torch.int64)
        return MemBARTState(slots, encoded, reach, response, zero.expand(B, self.segment_length), torch.zeros(B, dtype=torch.int64))

    def encode(
        self, tokens: Int[Tensor, "B n"], slots: Float[Tensor, "B N D"], reach: Int[Tensor, "B"] | None = None, *, noisy: bool = True
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B NL D"]]:
        """The slots after a turn, and what the decoder attends to. Of a row's tokens the first `reach` are there (None: all)."""
        N, n = slots.shape[1], tokens.shape[1]
        x = self.backbone.embed_source(tokens, noisy=noisy)
        old = self._forgotten(slots)
        mask = seen_by_both(N, n, reach, x.device)
        m, x = both_streams(self.backbone.encoder_layers, self.slot_layers, old.to(x.dtype), x, mask, noisy=noisy)
        new, x = self._updated(old, m), x.to(self.norm.weight.dtype)  # under autocast the state keeps the dtype of the weights
        if reach is not None:
            x = x * (torch.arange(n, device=x.device) < reach.to(x.device)[:, None])[..., None]
        return new, torch.cat([new.to(x.dtype), x], dim=1)

    def _forgotten(self, slots: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """In the dtype of the state: autocast narrows neither this nor the sum below."""
        norm, dtype = self.norm, slots.dtype
        return F.layer_norm(slots + self.bias.to(dtype), (slots.shape[2],), norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)

    def _updated(self, old: Float[Tensor, "B N D"], m: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return torch.lerp(old, m.to(old.dtype), self.gate(m).to(old.dtype).sigmoid())

    def _after(self, tokens: Int[Tensor, "B n"], state: MemBARTState, reach: Int[Tensor, "B"] | None = None) -> MemBARTState:
        """The turn `tokens` is encoded and written."""
        slots, encoded = self.encode(tokens, state.slots, reach)
        B, n = tokens.shape
        encoded = F.pad(encoded, (0, 0, 0, self.segment_length - n))
        return self._opened(slots, encoded, torch.full((B,), n) if reach is None else reach)

    # ------------------------------------------------------------------------------------------------------ as a stream

    def read_rows(self, tokens: Int[Tensor, "B n"], state: MemBARTState) -> tuple[Float[Tensor, "B n D"], MemBARTState]:
        """The decoder reads rows that are at one position."""

        def read(piece: Tensor, rows: MemBARTState) -> tuple[Tensor, MemBARTState]:
            at = int(rows.position[0])
            return self.read_piece(piece, rows, opens=at == 0, closes=at + piece.shape[1] == self.segment_length)

        return by_phase(read, tokens, state, state.position)

    def read_piece(
        self, tokens: Int[Tensor, "B n"], state: MemBARTState, *, opens: bool, closes: bool
    ) -> tuple[Float[Tensor, "B n D"], MemBARTState]:
        inputs = tokens[:, : tokens.shape[1] - closes]  # the last token of a segment is read by the encoder alone
        h, seen = [], self._seen(state)
        if inputs.shape[1]:
            if opens:
                inputs = torch.cat([self._start(tokens), inputs], dim=1)
            if opens and closes:
                y, response = self.backbone.decode_whole(inputs, state.encoded, seen), None
            else:
                before = self.backbone.open(state.encoded, self.segment_length) if opens else state.response
                y, response = self.backbone.decode(inputs, before, seen)
            h.append(y[:, int(opens) :])
        if not closes:
            encoded = empty(state.encoded, *state.encoded.shape)
            return h[0], self._held(tokens, state)._replace(encoded=encoded, response=response)
        state = self._close(tokens, state)
        return torch.cat([*h, self._first(state, tokens)], dim=1), state

    def advance(self, tokens: Int[Tensor, "B T"], state: MemBARTState) -> MemBARTState:
        """Segments that close need the encoder alone. With dropout all is read: replay draws what `features` draws."""
        self.check_input(tokens, state)
        if self.training and self.backbone.draws:
            return self.features(tokens, state)[1]

        def pass_over(piece: Tensor, rows: MemBARTState) -> tuple[Tensor, MemBARTState]:
            closes = int(rows.position[0]) + piece.shape[1] == self.segment_length
            return piece, self._close(piece, rows) if closes else self.read_rows(piece, rows)[1]

        while tokens.shape[1] > 0:
            piece, tokens = tokens.tensor_split([self.segment_length - int(state.position.max())], dim=1)
            state = by_phase(pass_over, piece, state, state.position)[1]
        return state

    def _close(self, tokens: Tensor, state: MemBARTState) -> MemBARTState:
        whole = tokens.shape[1] == self.segment_length
        return self._after(tokens if whole else self._held(tokens, state).tokens.to(tokens.device), state)

    def _held(self, tokens: Tensor, state: MemBARTState) -> MemBARTState:
        """The ids of the open segment with the piece's."""
        places = state.position[:, None] + torch.arange(tokens.shape[1])
        held = state.tokens.scatter(1, places, tokens.detach().to("cpu", torch.int64))
        return state._replace(tokens=held, position=state.position + tokens.shape[1])

    def _seen(self, state: MemBARTState) -> Bool[Tensor, "B S"] | None:
        """Which places of `encoded` there are; None where all."""
        if bool((state.reach == self.segment_length).all()):
            return None
        places = torch.arange(-self.config.n_slots, self.segment_length)
        return (places < state.reach[:, None]).to(self.bias.device)

    def _start(self, like: Tensor) -> Int[Tensor, "B 1"]:
        return torch.full_like(like[:, :1], self.backbone.start)

    def _first(self, state: MemBARTState, like: Tensor) -> Float[Tensor, "B 1 D"]:
        return self.backbone.decode_whole(self._start(like), state.encoded, self._seen(state))

    # ---------------------------------------------------------------------------------------------------- as a dialogue

    def read_source(self, source: Int[Tensor, "B T"], state: MemBARTState, lengths: Int[Tensor, "B"] | None = None) -> MemBARTState:
        """Encode a turn and write it; a turn longer than L is read as several. The state answers it.

        With `lengths` [B] (T is at most L then) a row's first tokens are its turn, and what follows them changes nothing; a row of none
        keeps its state. Raises `InputError` unless every row stands at a border.
        """
        self.check_input(source, state)
        self._check_border(state)
        if lengths is None:
            for turn in source.split(self.segment_length, dim=1):
                state = self._after(turn, state)
            return state
        if lengths.shape != source.shape[:1] or source.shape[1] > self.segment_length:
            raise InputError(
                f"lengths has shape {list(lengths.shape)} and the turns {list(source.shape)}; give one length a row, and turns of at most"
                f" segment_length={self.segment_length}"
            )
        lengths = lengths.cpu()
        if int(lengths.min()) < 0 or int(lengths.max()) > source.shape[1]:
            raise InputError(f"lengths must lie in 0 to {source.shape[1]}, got {int(lengths.min())} to {int(lengths.max())}")
        return choose(lengths > 0, self._after(source, state, lengths), state)

    def predict_first(self, state: MemBARTState) -> Float[Tensor, "B V"]:
        """Logits of the first token of a reply."""
        self._check_border(state)
        like = torch.zeros(len(state.position), 1, dtype=torch.int64, device=self.bias.device)
        return self.head(self._first(state, like)[:, 0])

    def target_loss(self, target: Int[Tensor, "B U"], state: MemBARTState) -> tuple[Float[Tensor, ""], Int[Tensor, ""], MemBARTState]:
        """As `loss`, of every token of a reply from the first on; -100 is not scored and ends a row. The state has read all but the last.

        Over the turns of a dialogue keep the state that `read_source` gave: a reply is written as part of the next turn.
        """
        self._check_border(state)
        tokens = target.clamp_min(0)
        h = self._first(state, tokens)
        if target.shape[1] > 1:
            rest, state = self.features(tokens[:, :-1], state)
            h = torch.cat([h, rest], dim=1)
        return self.score(h.flatten(0, 1), target.flatten()), (target != IGNORE).sum(), state

    @torch.no_grad()
    def reply(self, state: MemBARTState, **options: Any) -> Int[Tensor, "B n"]:
        """A reply to the last turn, by transformers' `generate` with its `options` (beams, sampling, ...). The state is not changed."""
        self._check_border(state)
        seen = self._seen(state)
        return self.backbone.generate(state.encoded, torch.ones_like(state.encoded[..., 0]).bool() if seen is None else seen, **options)

    def _check_border(self, state: MemBARTState) -> None:
        if bool(state.position.any()):
            raise InputError(f"a turn begins and ends at a segment's border; the rows stand {state.position.tolist()} tokens into one")

"""Recoding: an LSTM whose states take a step down the gradient of its own error while it reads, in training and after.

Source: Ulmer, "Recoding latent sentence representations: dynamic gradient-based activation modification in RNNs" (arXiv:2101.00674).

    h, c      = LSTM(E[x_t], h', c')            of every layer
    o         = W h                             of the top layer
    delta     = error of o                      surprisal of the next token, or how unsure K players are
    h' = h - alpha d delta / d h,  c' = c - alpha d delta / d c

The gradient is written out (`ops/recoding.py`) and a constant for the weights. Surprisal knows the next token: the step is taken when
that token is read, so the prediction of it never saw it. Entropy needs no answer: the step is taken at once, and what is predicted comes
from h' of the top. Entropy is of K fixed masks over h (dropout whose masks are drawn once, so that reading is a function of the stream),
or of K decoders of their own, each held to where it began (`anchor_loss`, for the trainer to add).

State: h and c, 8 L B D bytes; for surprisal also the gates and the cells before the last token, 20 L B D.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.recoding import (
    AdaptiveStep,
    Decoders,
    FixedStep,
    LearnedStep,
    Masks,
    Signal,
    Step,
    Surprisal,
    anchor_loss,
    draw_masks,
    with_decoders,
)
from memseq.layers.recurrent import GateWeights, widen
from memseq.models.language_model import LanguageModel
from memseq.ops.cross_entropy import linear_cross_entropy
from memseq.ops.linear import linear
from memseq.ops.recoding import entropy, lstm_gated, lstm_gradients, power, surprisal

__all__ = ["AdaptiveStep", "Decoders", "FixedStep", "LearnedStep", "Masks", "RecodingConfig", "RecodingLM", "RecodingState", "Surprisal"]


class Pending(NamedTuple):
    """What a step needs that waits for the next token."""

    gates: tuple[Float[Tensor, "B G"], ...]
    before: tuple[Float[Tensor, "B D"], ...]
    read: Int[Tensor, "B"]  # 1 where a token was read; on the host


class RecodingState(NamedTuple):
    h: tuple[Float[Tensor, "B D"], ...]
    c: tuple[Float[Tensor, "B D"], ...]
    pending: Pending | tuple[()]


@dataclass(frozen=True, kw_only=True)
class RecodingConfig:
    vocab_size: int
    d_model: int
    n_layers: int = 2
    signal: Signal = field(default_factory=Surprisal)
    step: Step = field(default_factory=lambda: FixedStep(alpha=0.1))
    dropout: float = 0.0  # of what the head reads

    def __post_init__(self) -> None:
        for name, least in (("vocab_size", 2), ("d_model", 1), ("n_layers", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "RecodingConfig":
        """The model of a `presets.Size`: as wide, two layers, as published."""
        return cls(vocab_size=vocab_size, d_model=size.d_model)

    def build(self) -> "RecodingLM":
        return RecodingLM(self)


class RecodingLM(LanguageModel[RecodingState]):
    masks: Tensor
    anchors: Tensor

    def __init__(self, config: RecodingConfig) -> None:
        super().__init__()
        self.config = config
        D, V = config.d_model, config.vocab_size
        self.embedding = nn.Embedding(V, D)
        nn.init.normal_(self.embedding.weight, std=D**-0.5)
        self.cells = nn.ModuleList(GateWeights(D, D, D, n_gates=4) for _ in range(config.n_layers))
        with torch.no_grad():
            for cell in self._layers():
                cell.b[D : 2 * D] = 1.0  # gates that keep
        self.step_size = config.step.build(2 * config.n_layers, D)  # h and c of each layer
        self.dropout = nn.Dropout(config.dropout)
        signal = config.signal
        if isinstance(signal, Masks):
            self.register_buffer("masks", draw_masks(signal, D))
        if isinstance(signal, Decoders):
            self.decoders = nn.Parameter(signal.prior_scale**0.5 * torch.randn(signal.n, V, D))
            self.register_buffer("anchors", self.decoders.detach().clone())

    def _layers(self) -> list[GateWeights]:
        return [cell for cell in self.cells if isinstance(cell, GateWeights)]

    def init_state(self, batch_size: int) -> RecodingState:
        w, D = self.embedding.weight, self.config.d_model
        dtype = torch.promote_types(w.dtype, torch.float32)

        def zeros(n: int) -> tuple[Tensor, ...]:
            return tuple(torch.zeros(batch_size, n, dtype=dtype, device=w.device) for _ in self.cells)

        waits = isinstance(self.config.signal, Surprisal)
        pending = Pending(zeros(4 * D), zeros(D), torch.zeros(batch_size, dtype=torch.int64)) if waits else ()
        return RecodingState(zeros(D), zeros(D), pending)

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return linear(h, self._read_out())

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return linear_cross_entropy(h, self._read_out(), targets)

    def _read_out(self) -> Float[Tensor, "V D"]:
        """W; of several decoders the mean, as logits are linear in them."""
        return self.decoders.mean(0) if isinstance(self.config.signal, Decoders) else self.embedding.weight

    def anchor_loss(self, n_tokens: int) -> Float[Tensor, ""]:
        """How far the decoders are from where they began, a token of a data set of `n_tokens`: what the trainer adds to the mean loss."""
        return anchor_loss(with_decoders(self.config.signal), self.decoders, self.anchors, n_tokens)

    def features(self, tokens: Int[Tensor, "B T"], state: RecodingState) -> tuple[Float[Tensor, "B T D"], RecodingState]:
        with torch.autocast(tokens.device.type, enabled=False):
            read, state = self._read(tokens, state)
        return self.dropout(read.to(self.embedding.weight.dtype)), state

    def _read(self, tokens: Tensor, state: RecodingState) -> tuple[Tensor, RecodingState]:
        h, c, pending = list(state.h), list(state.c), state.pending
        cells = self._layers()
        w_h = [widen(cell.w_h) for cell in cells]
        read = []
        for x, a in zip(tokens.unbind(1), cells[0].inputs(self.embedding(tokens)).unbind(1), strict=True):
            if isinstance(pending, Pending):
                h, c = self._stepped(h, c, pending.gates, pending.before, x, pending.read)
            gates, before = [], [cell.detach() for cell in c]
            for layer, cell in enumerate(cells):
                h[layer], c[layer], said = lstm_gated(a if layer == 0 else cell.inputs(h[layer - 1]), h[layer], c[layer], w_h[layer])
                gates.append(said.detach())
            if isinstance(pending, Pending):
                pending = Pending(tuple(gates), tuple(before), torch.ones_like(pending.read))
            else:
                h, c = self._stepped(h, c, gates, before, None, None)
            read.append(h[-1])
        return torch.stack(read, dim=1), RecodingState(tuple(h), tuple(c), pending)

    def _stepped(
        self, h: Any, c: Any, gates: Any, before: Any, gold: Tensor | None, read: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """h' and c' of every layer; rows that have read nothing stay."""
        with torch.no_grad():
            _, g_top = self.error(h[-1], gold)
            w_x = [widen(cell.w_x) for cell in self._layers()]
            g = lstm_gradients(g_top, gates, before, c, w_x)
            if read is not None:
                there = read.to(g_top.device, g_top.dtype)[:, None]
                g = [(g_h * there, g_c * there) for g_h, g_c in g]
        alpha = self.step_size
        after_h = [x - alpha(2 * i, x) * g_h for i, (x, (g_h, _)) in enumerate(zip(h, g, strict=True))]
        after_c = [y - alpha(2 * i + 1, x) * g_c for i, (x, y, (_, g_c)) in enumerate(zip(h, c, g, strict=True))]
        return after_h, after_c

    def error(self, h: Float[Tensor, "B D"], gold: Int[Tensor, "B"] | None = None) -> tuple[Float[Tensor, "B"], Float[Tensor, "B D"]]:
        """delta of what the top layer holds, and its gradient there; surprisal needs the token that came."""
        signal, w = self.config.signal, widen(self.embedding.weight)
        if isinstance(signal, Surprisal):
            assert gold is not None
            delta, g = (surprisal if signal.form == "log" else power)(h @ w.mT, gold)
            return delta, g @ w
        if isinstance(signal, Masks):
            masks = self.masks.to(h.dtype)[:, None]
            delta, g = entropy((h * masks) @ w.mT)
            return delta, ((g @ w) * masks).sum(0)
        decoders = widen(self.decoders)
        delta, g = entropy(h @ decoders.mT)
        return delta, (g @ decoders).sum(0)

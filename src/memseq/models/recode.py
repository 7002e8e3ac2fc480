"""Recode: any language model, trained or not, whose state takes a step down the gradient of the model's own error while it reads.

Source: Ulmer, "Recoding latent sentence representations" (arXiv:2101.00674), whose LSTM is `models/recoding.py`; here for all that keeps
the law. What a memory says is a function of a token and of the state before it, so that state is what moves, and the token is read again:

    h_1 .. h_L, s_L = model(u_1 .. u_L, s_0)             a segment of L tokens; logits = head(h)
    delta(s_0)      = 1/L sum_i error of head(h_i)       surprisal of u_{i+1}, or how unsure K players are
    s_0'            = s_0 - alpha d delta / d s_0         every floating leaf, or those of `leaves`
    s_L'            = the state after u_1 .. u_L from s_0'      the stream goes on from here

Surprisal needs the answers: the step waits until the token after the segment is read, and no prediction is made anew. Entropy needs none:
the step is taken when the segment ends, and its last prediction, which nobody has seen yet, is made from s_0'. With L = 1 that is every
token, as published. The gradient is a constant for the weights; steps may be learned.

Where the state is a matrix that is added to, h = q S, this is one descent step of an associative memory: S' = S - alpha/L sum_i q_i (d
error_i / d h_i), and the segment's own writes come on top. For an LSTM the source moves h and c after the token, by its gradient g
there; here they move, to first order in alpha, by J J_h^T g_h instead, J = d(h, c) / d(h, c before): only to where another past could have
led. Players of K decoders look at h beside the model's own head, which predicts as it was trained to.

Cost: a segment is read three times and once backwards. State: the model's, before the open segment and (L > 1) now; the ids of the segment.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from memseq.errors import ConfigError, nearest
from memseq.layers.phases import by_phase
from memseq.layers.recoding import FixedStep, Masks, Signal, Step, Surprisal, anchor_loss, draw_masks, with_decoders
from memseq.layers.recurrent import widen
from memseq.models.language_model import LanguageModel
from memseq.ops.cross_entropy import IGNORE
from memseq.ops.recoding import entropy, power, surprisal
from memseq.state import State, leaf_names, map_state, rebuild, tensors

__all__ = ["Recode", "RecodeConfig", "RecodeState", "Slope"]


class RecodeState(NamedTuple):
    before: State  # the model's, at the beginning of the open segment
    now: State  # after its tokens; `()` for segments of one token
    tokens: Int[Tensor, "B L"]  # ids of the open segment, on the host
    position: Int[Tensor, "B"]  # how many of them there are, on the host; L: they wait for the last answer


class Slope(NamedTuple):
    """The error of a segment and its gradient with respect to the state before it."""

    error: Float[Tensor, "B"]
    gradient: tuple[Tensor, ...]  # of every leaf that moves, in the order of `moving`
    last: Float[Tensor, "B D"]  # h of the segment's last token
    lost: Int[Tensor, "B"]  # numbers of the gradient that were not finite, and are zeros


@dataclass(frozen=True, kw_only=True)
class RecodeConfig:
    """`RecodeConfig(model=trained.config).build(trained)` goes around a model that is there; it is not copied."""

    model: Any  # the config of a language model
    signal: Signal = field(default_factory=Surprisal)
    step: Step = field(default_factory=lambda: FixedStep(alpha=0.1))
    segment_length: int = 1  # L, tokens between two steps
    leaves: tuple[str, ...] = ()  # what moves, by the ends of names, such as "slots"; none named: all leaves that hold numbers
    most: float | None = None  # of a leaf's norm: no step is longer

    def __post_init__(self) -> None:
        if self.segment_length < 1:
            raise ConfigError(f"segment_length must be at least 1, got {self.segment_length}")
        if self.most is not None and self.most <= 0:
            raise ConfigError(f"most={self.most} lets nothing move; use a share above 0, or None for steps of any length")
        if not hasattr(self.model, "vocab_size"):
            raise ConfigError(f"{type(self.model).__name__} is no language model's config; put a memory into a StackConfig first")

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def d_model(self) -> int:
        return self.model.d_model

    def build(self, model: LanguageModel[Any] | None = None) -> "Recode":
        if model is not None and model.config != self.model:
            raise ConfigError("the model that was given is not the one of this config; use RecodeConfig(model=trained.config)")
        return Recode(self, self.model.build() if model is None else model)


class Recode(LanguageModel[RecodeState]):
    masks: Tensor
    anchors: Tensor

    def __init__(self, config: RecodeConfig, model: LanguageModel[Any]) -> None:
        super().__init__()
        self.config, self.model = config, model
        if not model.causal:
            raise ConfigError(f"{type(model).__name__} sees later tokens of its segment, so its errors would tell it answers")
        state = model.init_state(1)
        self.moving = _moving(state, config.leaves, type(model).__name__)
        D, signal = config.d_model, config.signal
        self.waits = isinstance(signal, Surprisal)
        self.step_size = config.step.build(len(self.moving), D)
        if isinstance(signal, Masks):
            self.register_buffer("masks", draw_masks(signal, D))
        elif not isinstance(signal, Surprisal):
            weight = model.embedding.weight  # of the device and the precision that the decoders share with the model
            drawn = signal.prior_scale**0.5 * torch.randn(signal.n, config.vocab_size, D, device=weight.device, dtype=weight.dtype)
            self.decoders = nn.Parameter(drawn)
            self.register_buffer("anchors", drawn.clone())

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        return self.model.embedding

    @property
    def bounded(self) -> bool:  # type: ignore[override]
        return self.model.bounded

    @property
    def segment_length(self) -> int | None:
        own = self.model.segment_length
        return self.config.segment_length if own is None else max(own, self.config.segment_length)

    def init_state(self, batch_size: int) -> RecodeState:
        L, state = self.config.segment_length, self.model.init_state(batch_size)
        zeros = torch.zeros(batch_size, dtype=torch.int64)
        return RecodeState(state, state if L > 1 else (), zeros[:, None].expand(-1, L), zeros)

    def head(self, h: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        return self.model.head(h)

    def score(self, h: Float[Tensor, "N D"], targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
        return self.model.score(h, targets)

    # ---------------------------------------------------------------------------------------------------------- reading

    def features(self, tokens: Int[Tensor, "B T"], state: RecodeState) -> tuple[Float[Tensor, "B T D"], RecodeState]:
        return by_phase(self._read, tokens, state, state.position)

    def _read(self, tokens: Tensor, state: RecodeState) -> tuple[Tensor, RecodeState]:
        """Rows that are at one place of their segment."""
        L, h = self.config.segment_length, []
        before, held, at = state.before, state.tokens, int(state.position[0])
        now = state.now if L > 1 else before
        while tokens.shape[1]:
            if at == L:  # the token that comes is the answer that was waited for
                ids = held.to(tokens.device)
                slope = self.slope(ids, before, torch.cat([ids[:, 1:], tokens[:, :1]], dim=1))
                before = now = self.model.advance(ids, self.moved(before, slope))
                at = 0
            piece, tokens = tokens.tensor_split([L - at], dim=1)
            y, now = self.model.features(piece, now)
            held = held.slice_scatter(piece.to(held.device), 1, at, at + piece.shape[1])
            at += piece.shape[1]
            if at == L and not self.waits:
                ids = held.to(piece.device)
                again, before = self.model.features(ids, self.moved(before, self.slope(ids, before)))
                y, now, at = torch.cat([y[:, :-1], again[:, -1:]], dim=1), before, 0
            elif at == L:
                now = before  # it will be read again
            h.append(y)
        after = RecodeState(before, now if L > 1 else (), held, torch.full_like(state.position, at))
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), after

    def moved(self, state: State, slope: Slope) -> State:
        """The state after one step."""
        leaves = tensors(state)
        with torch.autocast(slope.last.device.type, enabled=False):
            for k, (i, g) in enumerate(zip(self.moving, slope.gradient, strict=True)):
                alpha = self.step_size(k, widen(slope.last))
                step = (_by_row(alpha, g) if isinstance(alpha, Tensor) else alpha) * g
                leaves[i] = leaves[i] - (step if self.config.most is None else _no_longer(step, self.config.most, leaves[i]))
        return rebuild(state, leaves)

    # ------------------------------------------------------------------------------------------------------- the error

    def slope(self, tokens: Int[Tensor, "B L"], state: State, answers: Int[Tensor, "B L"] | None = None) -> Slope:
        """How wrong, or how unsure, the model is on `tokens` after a state of its own, and where that is steepest.

        `answers` are the tokens that came after each; surprisal alone needs them. No graph but its own is touched, so that it works under
        `no_grad`, under `inference_mode` and inside a checkpoint.
        """
        with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(_kept, _kept):
            own = map_state(lambda t: t.detach().clone(), state)
            leaves = [tensors(own)[i].requires_grad_() for i in self.moving]
            h, _ = self.model.features(tokens.clone(), own)
            o = self._players(h.flatten(0, 1))
            delta, g = self._error(o.detach(), None if answers is None else answers.flatten())
            if o.requires_grad:
                found = torch.autograd.grad(o, leaves, (g / tokens.shape[1]).to(o.dtype), allow_unused=True, materialize_grads=True)
            else:
                found = tuple(map(torch.zeros_like, leaves))
        with torch.no_grad():
            fine = [t.isfinite() for t in found]
            lost = sum(((~t).flatten(1).sum(1) for t in fine), start=torch.zeros(len(h), dtype=torch.int64, device=h.device))
            gradient = tuple(torch.where(ok, t, torch.zeros_like(t)) for ok, t in zip(fine, found, strict=True))
        return Slope(delta.view(len(h), -1).mean(1), gradient, h[:, -1].detach(), lost)

    def _players(self, h: Float[Tensor, "N D"]) -> Float[Tensor, "*K N V"]:
        """Logits of each player; of the model itself for surprisal."""
        if isinstance(self.config.signal, Surprisal):
            return widen(self.model.head(h))
        if isinstance(self.config.signal, Masks):
            return widen(self.model.head(h * self.masks.to(h.dtype)[:, None]))
        return widen(self.model.head(h) + h @ self.decoders.to(h.dtype).mT)

    def _error(self, o: Tensor, answers: Tensor | None) -> tuple[Tensor, Tensor]:
        """delta of every token, and its gradient for the logits."""
        signal = self.config.signal
        if not isinstance(signal, Surprisal):
            return entropy(o)
        if answers is None:
            raise ConfigError("surprisal is of the tokens that came: give `answers`, or use a signal of entropy")
        return (surprisal if signal.form == "log" else power)(o, answers)

    # ------------------------------------------------------------------------------------------------------- decoders

    def decoder_loss(
        self, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], state: RecodeState
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""], RecodeState]:
        """As `loss`, of the decoders alone, each by itself: the sum of their mean. The model does not learn from it."""
        with_decoders(self.config.signal)
        self.check_input(tokens, state)
        with torch.no_grad():
            h, state = self.features(tokens, state)
        o = self._players(h.flatten(0, 1))
        total = F.cross_entropy(o.flatten(0, 1), targets.flatten().repeat(len(o)), ignore_index=IGNORE, reduction="sum") / len(o)
        return total, (targets != IGNORE).sum(), state

    def anchor_loss(self, n_tokens: int) -> Float[Tensor, ""]:
        """How far the decoders are from where they began, a token of a data set of `n_tokens`: what the trainer adds to the mean loss."""
        return anchor_loss(with_decoders(self.config.signal), self.decoders, self.anchors, n_tokens)


def _by_row(alpha: Tensor, like: Tensor) -> Tensor:
    """A number, or one a row, for a leaf of any shape."""
    return alpha.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


@torch.no_grad()
def _share(step: Tensor, most: float, leaf: Tensor) -> Tensor:
    sizes = [t.flatten(1).norm(dim=1) for t in (most * leaf, step)]
    return _by_row((sizes[0] / sizes[1]).nan_to_num(1.0).clamp(max=1.0), leaf)


def _no_longer(step: Tensor, most: float, leaf: Tensor) -> Tensor:
    """Row by row at most so long a share of the leaf; the share is a constant for the weights."""
    return _share(step, most, leaf) * step


def _kept(t: Tensor) -> Tensor:
    """What a checkpoint around us would drop and compute again is needed at once."""
    return t


def _moving(state: State, wanted: tuple[str, ...], owner: str) -> tuple[int, ...]:
    """The places, among the leaves of a state, of those that move."""
    floating = {i: name for i, (name, t) in enumerate(zip(leaf_names(state), tensors(state), strict=True)) if t.is_floating_point()}
    if not floating:
        raise ConfigError(
            f"the state of {owner} holds no floating numbers, so nothing in it can be moved; Recode needs a model that has some"
        )
    known = sorted({name.rpartition(".")[2] for name in floating.values()})
    for name in wanted:
        if not any(_ends(leaf, name) for leaf in floating.values()):
            raise ConfigError(f"no leaf of the state of {owner} is called {name!r}; {nearest(name, known)}")
    return tuple(i for i, leaf in floating.items() if not wanted or any(_ends(leaf, name) for name in wanted))


def _ends(leaf: str, name: str) -> bool:
    """`layers.0.0.S` is called S, 0.S, ..., and by its whole name."""
    return f".{leaf}".endswith(f".{name}")

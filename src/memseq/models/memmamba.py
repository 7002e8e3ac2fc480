"""MemMamba: Mamba-2 layers that take notes of tokens, and look into the notes when their own state may have lost them.

Source: MemMamba (Wang et al., arXiv:2510.03279); it has no public code, and what its paper leaves open is decided in `layers/notes.py`.

    x   = E[tokens]
    u   = RMSNorm x                                   the layer's input
    u'  = u + a c_own + b c_below                      c_own: from the layer's own pool, as it was before the token
                                                       c_below: every p layers, from the last g layers' pools, this token's notes too
    x  += Mamba2(u')                                   n_layers times; no feedforward
    h   = RMSNorm x,   logits = h E^T

Notes are written from u. a and b are learned and start at 0.1; at 0 it is the Mamba-2 language model (`models/mamba2.py`).
State: that model's, and 4 B N (d + 1) bytes of notes a layer. Reading T tokens in chunks of L costs T (N + L) scores a layer.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memseq.errors import ConfigError
from memseq.layers.head_norm import HeadNorm
from memseq.layers.notes import NoteReader, Notes, NoteState, NoteWriter, sees
from memseq.layers.sizes import check_at_least_one
from memseq.memories.mamba2 import Mamba2Config, Mamba2State
from memseq.models.language_model import LanguageModel

__all__ = ["MemMamba", "MemMambaConfig", "MemMambaState"]


class MemMambaState(NamedTuple):
    layers: tuple[Mamba2State, ...]
    notes: tuple[NoteState, ...]


@dataclass(frozen=True, kw_only=True)
class MemMambaConfig:
    vocab_size: int
    layer: Mamba2Config
    n_layers: int
    n_notes: int = 50  # N, of a layer's pool
    note_size: int = 64  # d
    window: int = 4  # w, tokens of a note
    select: Literal["learned", "frozen"] = "learned"  # what is worth a note; frozen: drawn once, the control
    own: bool = True  # whether a layer reads its own pool
    below_every: int | None = 4  # p: every so many layers read the pools below; None: none does
    below: int = 4  # g, layers whose pools they read
    chunk_size: int = 64  # speed only
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.vocab_size < 2:
            raise ConfigError(f"vocab_size must be at least 2, got {self.vocab_size}")
        check_at_least_one(self, "n_layers", "n_notes", "note_size", "window", "below", "chunk_size")
        if self.below_every is not None and self.below_every < 1:
            raise ConfigError(f"below_every must be at least 1, or None for no layer, got {self.below_every}")

    @property
    def d_model(self) -> int:
        return self.layer.d_model

    @classmethod
    def of_size(cls, size: Any, vocab_size: int) -> "MemMambaConfig":
        """As `Mamba2LMConfig.of_size`, with notes."""
        return cls(vocab_size=vocab_size, layer=Mamba2Config.of_size(size), n_layers=2 * size.n_layers)

    def reads_below(self, layer: int) -> range:
        """The layers whose pools `layer` reads: none but at every `below_every`-th."""
        if self.below_every is None or (layer + 1) % self.below_every:
            return range(0)
        return range(max(0, layer - self.below), layer)

    def build(self) -> "MemMamba":
        return MemMamba(self)


class MemMamba(LanguageModel[MemMambaState]):
    def __init__(self, config: MemMambaConfig) -> None:
        super().__init__()
        self.config = c = config
        D, n, d = c.d_model, c.n_layers, c.note_size
        self.embedding = nn.Embedding(c.vocab_size, D)
        self.layers = nn.ModuleList(c.layer.build() for _ in range(n))
        self.norms = nn.ModuleList(HeadNorm(D, c.norm_eps) for _ in range(n))
        self.norm = HeadNorm(D, c.norm_eps)
        self.writers = nn.ModuleList(NoteWriter(D, size=c.n_notes, width=d, window=c.window, frozen=c.select == "frozen") for _ in range(n))
        self.own = nn.ModuleList(NoteReader(D, width=d) for _ in range(n) if c.own)
        self.below = nn.ModuleDict({str(i): NoteReader(D, width=d) for i in range(n) if len(c.reads_below(i))})
        with torch.no_grad():
            nn.init.normal_(self.embedding.weight, std=D**-0.5)
            for layer in self.layers:
                layer.out.weight.mul_(n**-0.5)

    def init_state(self, batch_size: int) -> MemMambaState:
        layers = tuple(layer.init_state(batch_size) for layer in self.layers)
        return MemMambaState(layers, tuple(writer.init_state(batch_size) for writer in self.writers))

    def features(self, tokens: Int[Tensor, "B T"], state: MemMambaState) -> tuple[Float[Tensor, "B T D"], MemMambaState]:
        h = []
        for chunk in self.embedding(tokens).split(self.config.chunk_size, dim=1):
            y, state = self._read(chunk, state)
            h.append(y)
        return h[0] if len(h) == 1 else torch.cat(h, dim=1), state

    def _read(self, x: Tensor, state: MemMambaState) -> tuple[Tensor, MemMambaState]:
        c, dtype, T = self.config, x.dtype, x.shape[1]
        x = x.to(torch.promote_types(dtype, torch.float32))
        layers, pools, taken = [], [], []
        for i, (norm, layer, writer) in enumerate(zip(self.norms, self.layers, self.writers, strict=True)):
            u = norm(x).to(dtype)
            notes, pool = writer(u, state.notes[i])
            taken.append(notes)
            pools.append(pool)
            mixed = u
            if c.own:
                mixed = mixed + self.own[i](u, notes.notes, sees(notes.written, T, c.n_notes, inclusive=False))
            if len(c.reads_below(i)):
                mixed = mixed + self.below[str(i)](u, *self._beneath([taken[j] for j in c.reads_below(i)], T))
            y, after = layer(mixed, state.layers[i])
            x = x + y
            layers.append(after)
        return self.norm(x).to(dtype), MemMambaState(tuple(layers), tuple(pools))

    def _beneath(self, taken: list[Notes], T: int) -> tuple[Tensor, Tensor]:
        """The notes of lower layers side by side, and what each token sees of them."""
        visible = [sees(notes.written, T, self.config.n_notes, inclusive=True) for notes in taken]
        return torch.cat([notes.notes for notes in taken], dim=1), torch.cat(visible, dim=2)

"""Notes: a small pool of summaries of the tokens that were found worth keeping, read by attention.

Source: MemMamba (Wang et al., arXiv:2510.03279), whose paper leaves open what is worth keeping, when to look, and by what threshold.

    n_t   = max of x_{t-w+1} W_n, ..., x_t W_n                     a note of the last w tokens, 0 before the first
    write   where x_t w_1 + b_1 > 0                                 into a pool of N, the oldest leaves (FIFO)
    look    where x_t w_2 + b_2 > 0
    c_t   = W_o sum_j softmax_j(x_t W_q . k_j / sqrt(d)) k_j        k_j = W_k of the notes written before t; 0 without any

Both choices are hard in the forward pass and sigmoids in the backward pass (straight through), so what they do is learned. A pool
in time is the last N of all notes written, so that a whole chunk is read at once: notes carried in beside those of the chunk, and
each token sees of them what was written before it and not yet pushed out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from memseq.contract import empty
from memseq.layers.linear import Linear

__all__ = ["NoteReader", "NoteState", "NoteWriter", "Notes", "sees", "straight_through"]


class NoteState(NamedTuple):
    pool: Float[Tensor, "B N d"]  # newest last, zeros where nothing was written yet
    filled: Float[Tensor, "B N"]  # 1 where a note is
    tail: Float[Tensor, "B w d"]  # the last w - 1 tokens' own notes, newest last


class Notes(NamedTuple):
    """What a chunk may read: the pool that was carried in, then a candidate for every token of the chunk."""

    notes: Float[Tensor, "B S d"]
    written: Bool[Tensor, "B S"]


def straight_through(logit: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """1 where a logit is above 0, else 0; the gradient is the sigmoid's."""
    soft = logit.sigmoid()
    return (logit > 0).to(soft.dtype) + (soft - soft.detach())


def sees(written: Bool[Tensor, "B S"], tokens: int, size: int, *, inclusive: bool) -> Bool[Tensor, "B T S"]:
    """Which notes each of the last `tokens` candidates sees: written before it (or by it), and among the last `size` of these."""
    S = written.shape[1]
    count = written.long().cumsum(1)  # written up to each place, itself included
    own = torch.arange(S - tokens, S, device=written.device)
    place = torch.arange(S, device=written.device)
    before = place <= own[:, None] if inclusive else place < own[:, None]
    so_far = count[:, S - tokens :] if inclusive else count[:, S - tokens :] - written[:, S - tokens :].long()
    return before & written[:, None] & (so_far[..., None] - count[:, None] < size)


class NoteWriter(nn.Module):
    """Chooses tokens and writes notes of them. `frozen`: the choice stays as it was drawn, the control of a learned one."""

    def __init__(self, d_model: int, *, size: int, width: int, window: int, frozen: bool) -> None:
        super().__init__()
        self.size, self.window, self.width = size, window, width
        self.note = Linear(d_model, width, bias=False)
        self.worth = nn.Linear(d_model, 1)
        self.worth.requires_grad_(not frozen)
        nn.init.normal_(self.note.weight, std=d_model**-0.5)

    def init_state(self, batch_size: int) -> NoteState:
        w = self.note.weight
        return NoteState(
            w.new_zeros(batch_size, self.size, self.width),
            w.new_zeros(batch_size, self.size),
            empty(w, batch_size, self.window - 1, self.width),
        )

    def forward(self, x: Float[Tensor, "B T D"], state: NoteState) -> tuple[Notes, NoteState]:
        """What x may read and leaves to be read, and the state after it."""
        own = torch.cat([state.tail, self.note(x).to(state.pool.dtype)], dim=1)
        note = own.unfold(1, self.window, 1).amax(-1)
        with torch.autocast(x.device.type, enabled=False):
            gate = straight_through(self.worth(x.to(self.worth.weight.dtype)))
        notes = torch.cat([state.pool, note * gate.to(note.dtype)], dim=1)
        written = torch.cat([state.filled > 0, gate[..., 0] > 0], dim=1)
        keep = self._last(written)
        pool = notes.gather(1, keep[..., None].expand(-1, -1, self.width)) * written.gather(1, keep)[..., None]
        filled = written.gather(1, keep).to(state.filled.dtype)
        return Notes(notes, written), NoteState(pool, filled, own[:, own.shape[1] - self.window + 1 :].clone())

    def _last(self, written: Tensor) -> Tensor:
        """Places of the last `size` written notes in their order; before them, where there are fewer, of others."""
        S = written.shape[1]
        rank = torch.arange(S, device=written.device) + S * written.long()  # all that is written comes after all that is not
        return rank.topk(self.size, dim=1).indices.flip(1)


class NoteReader(nn.Module):
    """c [B, T, D] of tokens that look into a pool; zero where there is nothing to see or no wish to look."""

    def __init__(self, d_model: int, *, width: int) -> None:
        super().__init__()
        self.query, self.key = Linear(d_model, width, bias=False), Linear(width, width, bias=False)
        self.look, self.out = nn.Linear(d_model, 1), Linear(width, d_model, bias=False)
        self.strength = nn.Parameter(torch.tensor(0.1))  # the paper's best fusion: one learned weight, small at first
        for layer in (self.query, self.key, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x: Float[Tensor, "B T D"], notes: Float[Tensor, "B S d"], visible: Bool[Tensor, "B T S"]) -> Float[Tensor, "B T D"]:
        k = self.key(notes)
        scores = (self.query(x) @ k.mT * k.shape[-1] ** -0.5).to(torch.promote_types(k.dtype, torch.float32))
        weights = scores.masked_fill(~visible, -1e30).softmax(-1) * visible.any(-1, keepdim=True)
        with torch.autocast(x.device.type, enabled=False):
            look = straight_through(self.look(x.to(self.look.weight.dtype)))
        return self.strength * look.to(x.dtype) * self.out(weights.to(k.dtype) @ k)

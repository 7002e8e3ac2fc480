"""Prefix softmax: attention with one fixed query over every prefix of a stream, as a recurrence of constant state.

Source: Attention as an RNN (Feng et al., arXiv:2405.13956).

    o_t = sum_{i<=t} exp(s_i) v_i / sum_{i<=t} exp(s_i)              s_i = q . k_i / sqrt(K): no query depends on t
    m_t = max(m_{t-1}, s_t)                                          the definition: running maximum,
    u_t = exp(m_{t-1} - m_t) u_{t-1} + exp(s_t - m_t)                denominator
    w_t = exp(m_{t-1} - m_t) w_{t-1} + exp(s_t - m_t) v_t            and numerator; o_t = w_t / u_t

    prefix_softmax_recurrent    the definition, token by token
    prefix_softmax_scan         a parallel scan of `join`: log2 T levels, any length
    prefix_softmax_chunkwise    the fast one: products inside chunks, the same sums over the chunks' ends between them
    prefix_softmax_step         one token: one `join`
    prefix_softmax_last         the sums after the last token alone: no token has an output

`join` is the merge of `ops/attention.py` before it is divided, (o, lse) = (w / u, m + log u). The maximum is kept apart from the sum
because both would lose their digits together: lse in float32 is off by 1e-3 where scores are 1e4, and stands still after a
million alike, where u counts on to 1e7. The maximum only keeps exponents at or below zero: no gradient flows through it.
A past of nothing is (NOTHING, 0, 0). With a gate, log a_t <= 0 is added to every weight before token t is read.

Letters: B streams, G groups (heads x readouts), T tokens, V features of a value.
"""

from itertools import repeat
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.ops.attention import NOTHING
from memseq.ops.kernels.choice import kernel_for

__all__ = [
    "Sums",
    "join",
    "prefix_softmax_chunkwise",
    "prefix_softmax_last",
    "prefix_softmax_recurrent",
    "prefix_softmax_scan",
    "prefix_softmax_step",
]

Scores = Float[Tensor, "B G T"]
Values = Float[Tensor, "B G T V"]
PIECE = 512  # tokens worked on at once: what is made on the way stays in the caches, and sums of log gates stay short


class Sums(NamedTuple):
    """What a softmax needs to know of a past: of one, or of every prefix (with an axis T)."""

    m: Float[Tensor, "B G *T"]  # the greatest score, without a gradient
    u: Float[Tensor, "B G *T"]  # sum_i exp(s_i - m)
    w: Float[Tensor, "B G *T V"]  # sum_i exp(s_i - m) v_i


def join(first: Sums, then: Sums) -> Sums:
    """The sums over two pasts from those over each: associative and commutative, with (NOTHING, 0, 0) as its zero."""
    m = torch.maximum(first.m, then.m).detach()
    a, b = (first.m.detach() - m).exp(), (then.m.detach() - m).exp()
    return Sums(m, a * first.u + b * then.u, a[..., None] * first.w + b[..., None] * then.w)


def prefix_softmax_recurrent(s: Scores, v: Values, past: Sums, *, log_a: Scores | None = None) -> tuple[Values, Sums]:
    """The definition: the mean of every prefix, and the sums after the last token."""
    (m, u, w), o = past, []
    for t in range(s.shape[-1]):
        before = m.detach() if log_a is None else m.detach() + log_a[..., t]
        m = torch.maximum(before, s[..., t]).detach()
        kept, new = (before - m).exp(), (s[..., t] - m).exp()
        u = kept * u + new
        w = kept[..., None] * w + new[..., None] * v[..., t, :]
        o.append(w / u[..., None])
    return torch.stack(o, dim=-2), Sums(m, u, w)


def prefix_softmax_step(
    s: Float[Tensor, "B G"], v: Float[Tensor, "B G V"], past: Sums, *, log_a: Float[Tensor, "B G"] | None = None
) -> tuple[Float[Tensor, "B G V"], Sums]:
    """One token: the mean that includes it, and the sums."""
    before = past.m.detach() if log_a is None else past.m.detach() + log_a
    m = torch.maximum(before, s).detach()
    kept, new = (before - m).exp(), (s - m).exp()
    u, w = kept * past.u + new, kept[..., None] * past.w + new[..., None] * v
    return w / u[..., None], Sums(m, u, w)


def prefix_softmax_scan(s: Scores, v: Values, past: Sums) -> tuple[Values, Sums]:
    """All prefixes by doubling: after level j every token knows the 2^j tokens up to itself. T log T work in log2 T levels."""
    sums, reach = _leaves(s, v), 1
    while reach < s.shape[-1]:
        m, u, w = (t.narrow(2, 0, s.shape[-1] - reach) for t in sums)
        before = Sums(F.pad(m, (reach, 0), value=NOTHING), F.pad(u, (reach, 0)), F.pad(w, (0, 0, reach, 0)))
        sums = join(before, sums)
        reach *= 2
    m, u, w = join(Sums(*(t.unsqueeze(2) for t in past)), sums)
    return w / u[..., None], Sums(m[..., -1], u[..., -1], w[..., -1, :])


def prefix_softmax_chunkwise(s: Scores, v: Values, past: Sums, *, log_a: Scores | None = None, chunk_size: int = 16) -> tuple[Values, Sums]:
    """Equal to `prefix_softmax_recurrent`. Its backward pass keeps no weights: they are made again from the scores.

    Gates are sums over time: s_i - A_i with A_i = log a_1 + ... + log a_i has the same softmax over a prefix, and A_T is what the
    maximum after it lacks.
    """
    kernel_for("prefix_softmax", v, v, past.w)  # there is none but this; where another was asked for, that is said
    L = max(2, chunk_size)  # between chunks of one token there would be as many ends as tokens
    gates = repeat(None) if log_a is None else log_a.split(PIECE, -1)
    o = []
    for s_piece, v_piece, gate in zip(s.split(PIECE, -1), v.split(PIECE, -2), gates, strict=False):
        if gate is None:
            means, *after = _Prefix.apply(s_piece, v_piece, *past, L)
            past = Sums(*after)
        else:
            means, past = _gated(s_piece, v_piece, past, gate, L)
        o.append(means)
    return torch.cat(o, dim=-2) if len(o) > 1 else o[0], past


def _gated(s: Tensor, v: Tensor, past: Sums, log_a: Tensor, L: int) -> tuple[Tensor, Sums]:
    faded = log_a.cumsum(-1)
    o, m, u, w = _Prefix.apply(s - faded, v, *past, L)
    total = faded[..., -1].detach()
    one = (faded[..., -1] - total).exp()  # the maximum moves by the gates and passes no gradient: theirs goes through the sums
    return o, Sums(m + total, u * one, w * one[..., None])


def prefix_softmax_last(
    s: Scores, x: Float[Tensor, "B T D"], m: Float[Tensor, "B G"], *, log_a: Scores | None = None
) -> tuple[Float[Tensor, "B G"], Float[Tensor, "B G"], Float[Tensor, "B G"], Float[Tensor, "B G D"]]:
    """The sums after the last token: m, the factor of the past's sums, sum_i exp(s_i - m), and sum_i exp(s_i - m) x_i.

    Sums commute with projections, so x may be the inputs that values are made of: the sum is projected, not T values.
    """
    before = m.detach()
    if log_a is not None:
        total = log_a.sum(-1)
        s, before = s + total[..., None] - log_a.cumsum(-1), before + total
    m = torch.maximum(before, s.amax(-1)).detach()
    weights = (s - m[..., None]).exp()
    return m, (before - m).exp(), weights.sum(-1), weights @ x


def _leaves(s: Tensor, v: Tensor) -> Sums:
    """Each token as a past of its own."""
    m = s.detach()
    one = (s - m).exp()
    return Sums(m, one, one[..., None] * v)


class _Prefix(torch.autograd.Function):
    """Means of every prefix, and the sums after the last.

    With d_t = (do_t, -o_t . do_t) / u_t the gradient of (w_t, u_t), and R_i = sum_{t>=i} exp(s_i - m_t) d_t, the gradient of v_i is
    the first part of R_i, and that of s_i is v_i times it plus the second: one sum, weighted as in the forward pass, from the end.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, m_0: Tensor, u_0: Tensor, w_0: Tensor, L: int) -> tuple[Tensor, ...]:
        m = torch.cat([m_0[..., None], s], dim=-1).cummax(-1).values[..., 1:].contiguous()
        wide = torch.cat([v, v.new_ones(()).expand(*v.shape[:-1], 1)], dim=-1)
        sums = _sums(s, m, wide, m_0, torch.cat([w_0, u_0[..., None]], dim=-1), L)
        w, u = sums[..., :-1], sums[..., -1]
        o = w / u[..., None]
        ctx.L = L
        ctx.save_for_backward(s, v, m_0, u_0, w_0, o, m, u.contiguous())
        last = m[..., -1].clone(), u[..., -1].clone(), w[..., -1, :].clone()  # clone: a view would keep all T alive
        ctx.mark_non_differentiable(last[0])
        return o, *last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: Tensor, dm: Tensor, du: Tensor, dw: Tensor) -> tuple[Tensor | None, ...]:
        s, v, m_0, u_0, w_0, o, m, u = ctx.saved_tensors
        d = torch.cat([do, -(o * do).sum(-1, keepdim=True)], dim=-1).div_(u[..., None])
        d[..., -1, :] += torch.cat([dw, du[..., None]], dim=-1)
        R, R_0 = _sums_from_the_end(s, m, d, m_0, ctx.L)
        dv = R[..., :-1]
        return (v * dv).sum(-1) + R[..., -1], dv, None, R_0[..., -1], R_0[..., :-1], None


def _sums(s: Tensor, m: Tensor, v: Tensor, start: Tensor, first: Tensor, L: int) -> Tensor:
    """sum_{i<=t} exp(s_i - m_t) v_i + exp(start - m_t) first, for every t; m never falls, and s_t <= m_t."""
    T = s.shape[-1]
    if T <= L:
        return torch.addcmul(_weights(s, m) @ v, (start[..., None] - m).exp()[..., None], first[..., None, :])
    s, m, v = _in_chunks(s, L, NOTHING), _in_chunks(m, L, None), _in_chunks(v, L, 0.0)
    own = _weights(s, m) @ v
    ends = m[..., -1]
    after = _sums(ends, ends, own[..., -1, :], start, first, L)  # of the chunks' ends: the same sum
    begins = torch.cat([start[..., None], ends[..., :-1]], dim=-1)
    before = torch.cat([first[..., None, :], after[..., :-1, :]], dim=-2)
    sums = torch.addcmul(own, (begins[..., None] - m).exp()[..., None], before[..., None, :])
    return sums.flatten(-3, -2)[..., :T, :]


def _sums_from_the_end(s: Tensor, m: Tensor, d: Tensor, start: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """sum_{t>=i} exp(s_i - m_t) d_t for every i, and the same for what was there before, whose s is `start`."""
    T = s.shape[-1]
    if T <= L:
        return _weights(s, m).mT @ d, (start[..., None] - m).exp()[..., None, :].matmul(d)[..., 0, :]
    s, m, d = _in_chunks(s, L, NOTHING), _in_chunks(m, L, None), _in_chunks(d, L, 0.0)
    own = _weights(s, m).mT @ d
    ends = m[..., -1]
    begins = torch.cat([start[..., None], ends[..., :-1]], dim=-1)
    totals = (begins[..., None] - m).exp()[..., None, :].matmul(d)[..., 0, :]
    from_here, _ = _sums_from_the_end(begins, begins, totals, begins[..., 0], L)  # all that begins with chunk c or later
    later = torch.cat([from_here[..., 1:, :], torch.zeros_like(from_here[..., :1, :])], dim=-2)
    R = torch.addcmul(own, (s - ends[..., None]).exp()[..., None], later[..., None, :])
    return R.flatten(-3, -2)[..., :T, :], from_here[..., 0, :]


def _weights(s: Tensor, m: Tensor) -> Tensor:
    """exp(s_i - m_t) for i <= t: at most 1, whatever the scores."""
    return (s[..., None, :] - m[..., None]).clamp_(max=0).exp_().tril_()


def _in_chunks(t: Tensor, L: int, fill: float | None) -> Tensor:
    """[B, G, T, ...] as [B, G, chunks, L, ...]; the last chunk is filled up with what changes no sum (None: its last value)."""
    rest = -t.shape[2] % L
    if rest:
        like = t[:, :, -1:]
        tail = like if fill is None else torch.full_like(like, fill)
        t = torch.cat([t, tail.expand(-1, -1, rest, *t.shape[3:])], dim=2)
    return t.unflatten(2, (-1, L))

"""Prefix softmax: attention with one fixed query over every prefix of a stream, as a recurrence of constant state.

Source: Attention as an RNN (Feng et al., arXiv:2405.13956); the merge of parts is that of `ops/attention.py`.

    o_t = sum_{i<=t} exp(s_i) v_i / sum_{i<=t} exp(s_i)              s_i = q . k_i / sqrt(K): no query depends on t
    m_t = max(m_{t-1}, s_t)                                          the definition: running maximum,
    u_t = exp(m_{t-1} - m_t) u_{t-1} + exp(s_t - m_t)                denominator
    w_t = exp(m_{t-1} - m_t) w_{t-1} + exp(s_t - m_t) v_t            and numerator; o_t = w_t / u_t

What is carried is lse_t = m_t + log u_t and the mean o_t: the same knowledge, one value for one past, and nothing that grows.
An empty past has lse = NOTHING and mean 0. With a gate, log a_t <= 0 is added to every weight before token t is read.

    prefix_softmax_recurrent    the definition, token by token
    prefix_softmax_scan         a parallel scan of merges: log2 T levels, any length
    prefix_softmax_chunkwise    the fast one: products inside chunks, the same sums over the chunks' ends between them
    prefix_softmax_step         one token: one merge
    prefix_softmax_last         the state alone: one weighted sum, without any output

No exponent is above zero in any of them, so that no score overflows, however large.

Letters: B streams, G groups (heads x readouts), T tokens, V features of a value.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memseq.ops.attention import NOTHING, merge

__all__ = [
    "prefix_softmax_chunkwise",
    "prefix_softmax_last",
    "prefix_softmax_recurrent",
    "prefix_softmax_scan",
    "prefix_softmax_step",
]

Scores = Float[Tensor, "B G T"]
Values = Float[Tensor, "B G T V"]
Lse = Float[Tensor, "B G"]
Mean = Float[Tensor, "B G V"]
Result = tuple[Values, Lse, Mean]  # every prefix's mean, and the state after the last token
GATED_PIECE = 512  # tokens over which log gates are added up before a piece begins anew: sums stay short, rounding small


def prefix_softmax_recurrent(s: Scores, v: Values, lse: Lse, mean: Mean, *, log_a: Scores | None = None) -> Result:
    """The definition. The maximum only keeps the exponents small: no gradient flows through it."""
    m = lse.detach()
    u = (lse - m).exp()
    w = u[..., None] * mean
    o = []
    for t in range(s.shape[-1]):
        before = m if log_a is None else m + log_a[..., t]
        m = torch.maximum(before, s[..., t]).detach()
        kept, new = (before - m).exp(), (s[..., t] - m).exp()
        u = kept * u + new
        w = kept[..., None] * w + new[..., None] * v[..., t, :]
        o.append(w / u[..., None])
    return torch.stack(o, dim=-2), m + u.log(), o[-1]


def prefix_softmax_step(
    s: Float[Tensor, "B G"], v: Float[Tensor, "B G V"], lse: Lse, mean: Mean, *, log_a: Float[Tensor, "B G"] | None = None
) -> tuple[Lse, Mean]:
    """One token: the state after it, whose mean is what is read."""
    lse = lse if log_a is None else lse + log_a
    o, lse = merge(mean[..., None, :], lse[..., None], v[..., None, :], s[..., None])
    return lse[..., 0], o[..., 0, :]


def prefix_softmax_scan(s: Scores, v: Values, lse: Lse, mean: Mean) -> Result:
    """All prefixes by doubling: after level j every token knows the 2^j tokens up to itself. T log T work, log2 T steps."""
    o, l, reach = v, s, 1
    while reach < s.shape[-1]:
        before_o = F.pad(o[..., :-reach, :], (0, 0, reach, 0))
        before_l = F.pad(l[..., :-reach], (reach, 0), value=NOTHING)
        o, l = merge(before_o, before_l, o, l)
        reach *= 2
    o, l = merge(mean[..., None, :].expand_as(o), lse[..., None].expand_as(l), o, l)
    return o, l[..., -1], o[..., -1, :]


def prefix_softmax_chunkwise(s: Scores, v: Values, lse: Lse, mean: Mean, *, log_a: Scores | None = None, chunk_size: int = 16) -> Result:
    """Equal to `prefix_softmax_recurrent`. Its backward pass keeps no weights: they are made again from s and lse.

    Gates are sums over time: s_i - A_i with A_i = log a_1 + ... + log a_i has the same softmax over a prefix, and A_t is what the
    log-denominator lacks.
    """
    L = max(2, chunk_size)  # between chunks of one token there would be as many ends as tokens
    if log_a is None:
        o, l = _Prefix.apply(s, v, lse, mean, L)
        return o, l[..., -1].clone(), o[..., -1, :].clone()  # clone: a view would keep all T alive
    o = []
    for s_piece, v_piece, a_piece in zip(s.split(GATED_PIECE, -1), v.split(GATED_PIECE, -2), log_a.split(GATED_PIECE, -1), strict=True):
        faded = a_piece.cumsum(-1)
        piece, l = _Prefix.apply(s_piece - faded, v_piece, lse, mean, L)
        lse, mean = l[..., -1] + faded[..., -1], piece[..., -1, :].clone()
        o.append(piece)
    return torch.cat(o, dim=-2), lse, mean


def prefix_softmax_last(
    s: Scores, x: Float[Tensor, "B T D"], lse: Lse, *, log_a: Scores | None = None
) -> tuple[Lse, Float[Tensor, "B G"], Float[Tensor, "B G D"]]:
    """The state alone: the new lse, the share of the past in the new mean, and sum_i weight_i x_i.

    Weighted sums commute with projections, so x may be the inputs that values are made of: the sum is projected, not T values.
    """
    if log_a is not None:
        total = log_a.sum(-1)
        s, lse = s + total[..., None] - log_a.cumsum(-1), lse + total
    after = torch.logsumexp(torch.cat([lse[..., None], s], dim=-1), dim=-1)
    return after, (lse - after).exp(), (s - after[..., None]).exp() @ x


class _Prefix(torch.autograd.Function):
    """o and lse of every prefix. With d_t = (do_t, dlse_t - o_t . do_t) and R_i = sum_{t>=i} exp(s_i - lse_t) d_t,
    dv_i is the first part of R_i, and ds_i = v_i . dv_i + the second: one sum, weighted as in the forward pass, from the end."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, lse: Tensor, mean: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
        l = torch.cat([lse[..., None], s], dim=-1).logcumsumexp(-1)[..., 1:].contiguous()
        o = _sums(s, l, v, lse, mean, chunk_size)
        ctx.chunk_size = chunk_size
        ctx.save_for_backward(s, v, lse, mean, o, l)
        return o, l

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: Tensor, dl: Tensor) -> tuple[Tensor | None, ...]:
        s, v, lse, mean, o, l = ctx.saved_tensors
        d = torch.cat([do, (dl - (o * do).sum(-1))[..., None]], dim=-1)
        R, R_0 = _sums_from_the_end(s, l, d, lse, ctx.chunk_size)
        dv, dmean = R[..., :-1], R_0[..., :-1]
        return (v * dv).sum(-1) + R[..., -1], dv, (mean * dmean).sum(-1) + R_0[..., -1], dmean, None


def _sums(s: Tensor, l: Tensor, v: Tensor, start: Tensor, first: Tensor, L: int) -> Tensor:
    """sum_{i<=t} exp(s_i - l_t) v_i + exp(start - l_t) first, for every t; l never falls, and s_t <= l_t."""
    T = s.shape[-1]
    if T <= L:
        own = _weights(s, l) @ v
        return own + (start[..., None] - l).exp()[..., None] * first[..., None, :]
    s, l, v = _in_chunks(s, L, NOTHING), _in_chunks(l, L, None), _in_chunks(v, L, 0.0)
    own = _weights(s, l) @ v
    ends = l[..., -1]
    after = _sums(ends, ends, own[..., -1, :], start, first, L)  # of the chunks' ends: the same sum
    begins = torch.cat([start[..., None], ends[..., :-1]], dim=-1)
    before = torch.cat([first[..., None, :], after[..., :-1, :]], dim=-2)
    o = torch.addcmul(own, (begins[..., None] - l).clamp(max=0).exp()[..., None], before[..., None, :])
    return o.flatten(-3, -2)[..., :T, :]


def _sums_from_the_end(s: Tensor, l: Tensor, d: Tensor, start: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """sum_{t>=i} exp(s_i - l_t) d_t for every i, and the same for the state that began, whose s is `start`."""
    T = s.shape[-1]
    if T <= L:
        return _weights(s, l).mT @ d, (start[..., None] - l).exp()[..., None, :].matmul(d)[..., 0, :]
    s, l, d = _in_chunks(s, L, NOTHING), _in_chunks(l, L, None), _in_chunks(d, L, 0.0)
    own = _weights(s, l).mT @ d
    ends = l[..., -1]
    begins = torch.cat([start[..., None], ends[..., :-1]], dim=-1)
    totals = (begins[..., None] - l).clamp(max=0).exp()[..., None, :].matmul(d)[..., 0, :]
    from_here, _ = _sums_from_the_end(begins, begins, totals, begins[..., 0], L)  # all that begins with chunk c or later
    later = torch.cat([from_here[..., 1:, :], torch.zeros_like(from_here[..., :1, :])], dim=-2)
    R = torch.addcmul(own, (s - ends[..., None]).clamp(max=0).exp()[..., None], later[..., None, :])
    return R.flatten(-3, -2)[..., :T, :], from_here[..., 0, :]


def _weights(s: Tensor, l: Tensor) -> Tensor:
    """P_ti = exp(s_i - l_t) for i <= t: at most 1, whatever the scores."""
    return (s[..., None, :] - l[..., None]).clamp_(max=0).exp_().tril_()


def _in_chunks(t: Tensor, L: int, fill: float | None) -> Tensor:
    """[B, G, T, ...] as [B, G, chunks, L, ...]; the last chunk is filled up with what changes no sum (None: its last value)."""
    rest = -t.shape[2] % L
    if rest:
        like = t[:, :, -1:]
        tail = like if fill is None else torch.full_like(like, fill)
        t = torch.cat([t, tail.expand(-1, -1, rest, *t.shape[3:])], dim=2)
    return t.unflatten(2, (-1, L))

"""Attention as pure functions: masks, windows, and the online softmax that merges attention over parts of a past.

Source: the merge is Milakov & Gimelshein (arXiv:1805.02867) and FlashAttention (Dao et al., arXiv:2205.14135).

    o_i   = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j
    lse_i = log sum_j exp(q_i . k_j / sqrt(K))               what a softmax needs to know of a part
    merge: o = (exp(lse_1) o_1 + exp(lse_2) o_2) / (exp(lse_1) + exp(lse_2))

A mask is True where a query sees a key. Every query of `attend` must see a key; `attention_with_lse` lets a query see none
of its part (o = 0, lse = NOTHING), and the merge with another part is still exact.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NOTHING", "attend", "attention_with_lse", "attention_with_lse_definition", "band", "merge", "windowed"]

NOTHING = -1e30  # the lse of a query that saw no key: finite, so that no gradient is NaN, and far below every other

Queries = Float[Tensor, "B H T K"]
Keys = Float[Tensor, "B H S K"]
Lse = Float[Tensor, "B H T"]


def attend(q: Queries, k: Keys, v: Keys, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0) -> Queries:
    """Softmax attention. `causal` is for T = S; a mask is [T, S] or broadcasts to [B, H, T, S]."""
    q = q.to(k.dtype)  # under autocast queries may be narrower than what is kept; the product is made narrow again inside
    if _slow_backward(q, k):
        return _attend_in_full(q, k, v, mask, causal, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)


def _slow_backward(q: Tensor, k: Tensor) -> bool:
    """On a CPU the fused backward pass in bfloat16 takes two to four times as long as plain products, for as long as the
    table of weights fits the caches; in float32 the fused form wins."""
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        return False
    narrow = q.dtype == torch.bfloat16 or (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
    return narrow and q.dtype != torch.float64 and q.shape[2] * k.shape[2] <= 512 * 512


def _attend_in_full(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float) -> Tensor:
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        mask = band(q.shape[2], k.shape[2], None, device=q.device)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return F.dropout(logits.softmax(-1).to(v.dtype), dropout) @ v


def band(queries: int, keys: int, window: int | None, *, device: torch.device) -> Bool[Tensor, "T S"]:
    """The causal mask of the last `queries` of `keys` tokens: itself and the window - 1 before it (None: all before it)."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def windowed(q: Queries, k: Queries, v: Queries, *, start: int, window: int, block: int, dropout: float = 0.0) -> Float[Tensor, "B H N K"]:
    """Windowed attention of the queries from `start` on, each with its whole window among the keys: O(T W).

    Blocks of `block` >= window - 1 queries see their own keys and the block before; all blocks are one call.
    """
    T = q.shape[2]
    full, rest = divmod(T - start, block)
    o = []
    if full:
        end = start + full * block
        queries = q[:, :, start:end].unflatten(2, (full, block)).flatten(1, 2)
        mask = band(block, 2 * block, window, device=q.device)
        pairs = []
        for t in (k, v):
            before, own = t[:, :, start - block : end - block], t[:, :, start:end]
            pairs.append(torch.cat([z.unflatten(2, (full, block)) for z in (before, own)], dim=3).flatten(1, 2))
        o.append(attend(queries, *pairs, mask=mask, dropout=dropout).unflatten(1, (-1, full)).flatten(2, 3))
    if rest:
        seen = window - 1 + rest
        mask = band(rest, seen, window, device=q.device)
        o.append(attend(q[:, :, -rest:], k[:, :, -seen:], v[:, :, -seen:], mask=mask, dropout=dropout))
    return torch.cat(o, dim=2)


def merge(o1: Queries, lse1: Lse, o2: Queries, lse2: Lse) -> tuple[Queries, Lse]:
    """Attention over two parts of a past from attention over each: exact, associative, in any order."""
    lse = torch.logaddexp(lse1, lse2)
    o = (lse1 - lse).exp()[..., None] * o1 + (lse2 - lse).exp()[..., None] * o2
    return o.to(o1.dtype), lse


def attention_with_lse_definition(q: Queries, k: Keys, v: Keys, *, mask: Tensor | None = None) -> tuple[Queries, Lse]:
    """Attention and the logarithm of its normaliser, as written above: the form the fast one is tested against."""
    scores = (q @ k.mT * q.shape[-1] ** -0.5).to(torch.promote_types(q.dtype, torch.float32))
    if mask is not None:
        scores = scores.masked_fill(~mask, NOTHING)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp()
    if mask is not None:
        seen = mask.any(-1)
        weights, lse = weights.masked_fill(~seen[..., None], 0), lse.masked_fill(~seen, NOTHING)
    return weights.to(v.dtype) @ v, lse


def attention_with_lse(q: Queries, k: Keys, v: Keys, *, mask: Tensor | None = None) -> tuple[Queries, Lse]:
    """Equal to `attention_with_lse_definition`; on a CPU it never holds the T x S weights. A mask is [T, S] or [B, 1 or H, T, S]."""
    if q.device.type != "cpu":
        return attention_with_lse_definition(q, k, v, mask=mask)
    bias = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
    o, lse = _CpuFlash.apply(q, k, v, bias)
    if mask is not None:
        seen = mask.any(-1)
        o, lse = o.masked_fill(~seen[..., None], 0), lse.masked_fill(~seen, NOTHING)
    return o, lse


class _CpuFlash(torch.autograd.Function):
    """The kernel behind `scaled_dot_product_attention`, which hands out the lse but knows no gradient of it.

    With P the weights and dP = dO V^T it computes dS as P (dP - rowsum(dO O)), where P (dP - rowsum(dO O) + dlse) is due.
    A column of zeros in q, k and v, of ones in O and of -dlse in dO adds just this term.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = q.shape[-1] ** -0.5
        o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, scale=scale)
        ctx.save_for_backward(q, k, v, bias, o, lse)
        return o, lse.clone()  # what is saved is the kernel's own: a query that saw nothing has lse 0 there

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, o, lse = ctx.saved_tensors
        K = q.shape[-1]
        wide_q, wide_k, wide_v = (F.pad(t, (0, 1)) for t in (q, k, v))
        wide_o = F.pad(o, (0, 1), value=1.0)
        wide_do = torch.cat([do, -dlse[..., None].to(do.dtype)], dim=-1)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            wide_do, wide_q, wide_k, wide_v, wide_o, lse, 0.0, False, attn_mask=bias, scale=K**-0.5
        )
        return *(g[..., :K] for g in grads), None

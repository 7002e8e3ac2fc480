"""Attention as pure functions: masks, windows, and the online softmax that merges attention over parts of a past.

Source: the merge is Milakov & Gimelshein (arXiv:1805.02867) and FlashAttention (Dao et al., arXiv:2205.14135).

    o_i   = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j
    lse_i = log sum_j exp(q_i . k_j / sqrt(K))               what a softmax needs to know of a part
    merge: o = (exp(lse_1) o_1 + exp(lse_2) o_2) / (exp(lse_1) + exp(lse_2))

A mask is True where a query sees a key. Every query of `attend` must see a key.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["attend", "band", "windowed"]

Queries = Float[Tensor, "B H T K"]
Keys = Float[Tensor, "B H S K"]
Mask = Bool[Tensor, "*#broadcast T S"]


def attend(q: Queries, k: Keys, v: Keys, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0) -> Queries:
    """Softmax attention. `causal` is for T = S; a mask is [T, S] or broadcasts to [B, H, T, S]."""
    q = q.to(k.dtype)  # under autocast queries may be narrower than what is kept; the product is made narrow again inside
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, dropout_p=dropout)


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

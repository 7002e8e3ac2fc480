"""Tokens to a few of several memories: the choice, and what each memory reads, in the order of time.

Source: Mixture-of-Memories (Du et al., arXiv:2502.13685); the balance is that of Switch Transformers (arXiv:2101.03961), as it
stands at every token.

    p = softmax(x W_r)        T_t = the k largest        g_m = p_m / sum of the chosen p        for m in T_t
    balance_t = E sum_m f_m(t) p_m(t)        f_m(t): the share of the stream's tokens up to t that chose m; sum_m f_m = k

`gather` gives the place of every routed token in a grid [B, E, L]: memory m of stream b has its tokens in its row, in their order, the
rest of the row is empty. L is the longest row, in whole blocks of `multiple`, so that what stands in a block does not depend on
how many blocks there are: an output does not change, to the last bit, when later tokens are routed elsewhere.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["Grid", "balance", "choose_memories", "gather", "one_hot"]


class Grid(NamedTuple):
    """Where routed tokens stand."""

    source: Int64[Tensor, "B E L"]  # the token b T + t that stands here; any token of the stream where the place is empty
    filled: Bool[Tensor, "B E L"]
    place: Int64[Tensor, "B T k"]  # the place (b E + m) L + l of token t's choices


def choose_memories(p: Float[Tensor, "B T E"], k: int) -> tuple[Int64[Tensor, "B T k"], Float[Tensor, "B T k"]]:
    """The k likeliest memories of every token and their weights, which add up to one."""
    chosen = p.topk(k, dim=-1).indices
    weight = p.gather(-1, chosen)
    return chosen, weight / weight.sum(-1, keepdim=True)


def one_hot(chosen: Int64[Tensor, "B T k"], n_memories: int) -> Bool[Tensor, "B T E"]:
    """Which memories a token is routed to."""
    routed = torch.zeros(*chosen.shape[:2], n_memories, dtype=torch.bool, device=chosen.device)
    return routed.scatter_(-1, chosen, True)


def gather(chosen: Int64[Tensor, "B T k"], routed: Bool[Tensor, "B T E"], *, multiple: int) -> Grid:
    """The grid of the tokens that `chosen` (and `routed`, the same choice) names."""
    B, T, E = routed.shape
    count = routed.sum(1)  # [B, E]
    L = min(T, -(-int(count.max()) // multiple) * multiple)
    order = routed.long().cumsum(1) - 1  # the place in its row, where it is routed
    place = torch.where(routed, order, L)
    times = torch.arange(T, device=routed.device)[None, :, None].expand(B, T, E)
    source = times.new_zeros(B, L + 1, E).scatter_(1, place, times)[:, :L]  # place L takes what is not routed
    streams = torch.arange(B, device=routed.device)[:, None, None]
    filled = torch.arange(L, device=routed.device) < count[..., None]
    return Grid(source.mT + streams * T, filled, (streams * E + chosen) * L + order.gather(-1, chosen))


def balance(
    p: Float[Tensor, "B T E"], routed: Bool[Tensor, "B T E"], load: Float[Tensor, "B E"], k: int
) -> tuple[Float[Tensor, "B"], Float[Tensor, "B E"]]:
    """The sum of balance_t over the tokens, k of them at its even best, and the load after them: tokens that chose each memory.

    Its gradient reaches p alone, as in the published form. There f and the mean of p are of a whole batch, which a token of a stream
    cannot know; here f is the stream's own.
    """
    counts = load[:, None] + routed.to(load.dtype).cumsum(1)
    share = counts * (k / counts.sum(-1, keepdim=True))
    return p.shape[-1] * (share * p).sum((1, 2)), counts[:, -1].clone()

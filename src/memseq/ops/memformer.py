"""Slots that a stream reads and writes: the arithmetic of Memformer's memory.

Source: Memformer (Wu et al., arXiv:2010.06891), sections on slot attention and on forgetting.

    l_0 = q_i . k_i / sqrt(K),   l_j = q_i . k_xj / sqrt(K)         slot i against itself and against token j
    a   = softmax([l_0 + keep, l_1, ..., l_L] / tau)                 slots never see each other
    m'  = a_0 m + sum_j a_j v_xj                                     per head; the slot's own value is the raw slot
    M   = R (m' + v) / |m' + v|                                      Biased Memory Normalisation, on a sphere of radius R

`write_slots` is the definition. `gather_tokens` and `close_slots` are the same softmax met token by token: a running
maximum (`peak`), the sum of weights (`mass`) and the weighted sum of values (`total`) are all that a segment leaves
behind, so a stream needs no buffer of its tokens.

Axes: B streams, L tokens, N slots, H heads, K = D / H.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.ops.attention import attend

__all__ = [
    "NOTHING",
    "biased_normalise",
    "close_slots",
    "gather_tokens",
    "lift",
    "read_lifted",
    "read_projected",
    "split_heads",
    "write_slots",
]

NOTHING = -1e30  # the running maximum before any token: finite, and far below every logit


def split_heads(x: Float[Tensor, "B L D"], n_heads: int) -> Float[Tensor, "B H L K"]:
    """[B, L, H K] -> [B, H, L, K]."""
    return x.view(*x.shape[:2], n_heads, -1).transpose(1, 2)


def write_slots(
    slots: Float[Tensor, "B N D"],
    q: Float[Tensor, "B H N K"],
    k: Float[Tensor, "B H N K"],
    token_keys: Float[Tensor, "B H L K"],
    token_values: Float[Tensor, "B H L K"],
    *,
    temperature: float,
    keep_bias: float = 0.0,
) -> Float[Tensor, "B N D"]:
    """The definition: each slot attends to itself and to the tokens of the segment, with one softmax over both."""
    scale = 1 / math.sqrt(q.shape[-1])
    own = (q * k).sum(-1, keepdim=True) * scale / temperature + keep_bias
    weights = torch.cat([own, q @ token_keys.mT * scale / temperature], dim=-1).softmax(-1)
    kept = weights[..., :1] * split_heads(slots, q.shape[1])
    return (kept + weights[..., 1:] @ token_values).transpose(1, 2).flatten(2)


def gather_tokens(
    logits: Float[Tensor, "B H N L"],
    token_values: Float[Tensor, "B H L K"],
    peak: Float[Tensor, "B H N"],
    mass: Float[Tensor, "B H N"],
    total: Float[Tensor, "B H N K"],
) -> tuple[Float[Tensor, "B H N"], Float[Tensor, "B H N"], Float[Tensor, "B H N K"]]:
    """Take more tokens into a running softmax. `logits` are already divided by sqrt(K) and by the temperature.

    The running maximum only keeps numbers in range: the result does not depend on it, so no gradient flows through it.
    """
    new_peak = torch.maximum(peak, logits.amax(-1)).detach()
    fade = (peak.detach() - new_peak).exp()
    weights = (logits - new_peak[..., None]).exp()
    return new_peak, mass * fade + weights.sum(-1), total * fade[..., None] + weights @ token_values


def close_slots(
    slots: Float[Tensor, "B N D"],
    own: Float[Tensor, "B H N"],
    peak: Float[Tensor, "B H N"],
    mass: Float[Tensor, "B H N"],
    total: Float[Tensor, "B H N K"],
) -> Float[Tensor, "B N D"]:
    """The slots after a segment: each slot's own term, of logit `own`, joins the running softmax, which is divided out."""
    values = split_heads(slots, own.shape[1])
    top = torch.maximum(peak, own).detach()
    fade, weight = (peak.detach() - top).exp(), (own - top).exp()
    update = (total * fade[..., None] + weight[..., None] * values) / (mass * fade + weight)[..., None]
    return update.transpose(1, 2).flatten(2)


def biased_normalise(slots: Float[Tensor, "B N D"], bias: Float[Tensor, "N D"] | None, *, radius: float) -> Float[Tensor, "B N D"]:
    """Biased Memory Normalisation: add `bias` (None: nothing), then bring every slot back to the sphere of `radius`.

    With nothing written, the angle between slot and bias shrinks from a to atan2(sin a, cos a + |bias| / radius): near
    the end a memory halves in ln 2 / ln(1 + |bias| / radius) segments.
    """
    moved = slots if bias is None else slots + bias
    return moved * (radius / moved.norm(dim=-1, keepdim=True).clamp_min(1e-6 * radius))


def read_projected(
    q: Float[Tensor, "B H L K"], k: Float[Tensor, "B H N K"], v: Float[Tensor, "B H N K"], reach: Int[Tensor, "B"] | None = None
) -> Float[Tensor, "B L D"]:
    """Tokens attend to the slots (the first `reach` of each row), which were projected once: for many tokens."""
    mask = None if reach is None else _seen(reach, k.shape[2], q.device)[:, None, None]
    return attend(q, k, v, mask=mask).transpose(1, 2).flatten(2)


def read_lifted(
    q: Float[Tensor, "B H L K"],
    slots: Float[Tensor, "B N D"],
    key_weight: Float[Tensor, "D D"],
    value_weight: Float[Tensor, "D D"],
    reach: Int[Tensor, "B"] | None = None,
) -> Float[Tensor, "B L D"]:
    """The same sums in another order, for few tokens: queries are carried into the slots' space by the [out, in] matrices.

    2 D^2 + 2 H N D products a token, where projecting the slots takes 2 N D^2 whatever the number of tokens.
    """
    B, H, L, K = q.shape
    logits = torch.bmm(lift(q, key_weight), slots.mT) / math.sqrt(K)  # [B, H L, N]
    if reach is not None:
        logits = logits.masked_fill(~_seen(reach, slots.shape[1], q.device)[:, None], -torch.inf)
    mixed = torch.bmm(logits.softmax(-1), slots).view(B, H, L, -1).transpose(0, 1).reshape(H, B * L, -1)
    read = torch.bmm(mixed, value_weight.view(H, K, -1).mT)
    return read.view(H, B, L, K).permute(1, 2, 0, 3).reshape(B, L, H * K)


def lift(q: Float[Tensor, "B H L K"], weight: Float[Tensor, "D D"]) -> Float[Tensor, "B HL D"]:
    """Every head's vectors carried by its rows of a [out, in] matrix into the space that the matrix reads: one product a head."""
    B, H, L, K = q.shape
    lifted = torch.bmm(q.transpose(0, 1).reshape(H, B * L, K), weight.view(H, K, -1))
    return lifted.view(H, B, L, -1).transpose(0, 1).reshape(B, H * L, -1)


def _seen(reach: Tensor, n_slots: int, device: torch.device) -> Tensor:
    return (torch.arange(n_slots) < reach.cpu()[:, None]).to(device)  # [B, N]

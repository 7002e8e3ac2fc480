"""Gradients of a recurrent network's own error with respect to what it holds, written out: no graph is kept for them.

Source: Ulmer, "Recoding latent sentence representations" (arXiv:2101.00674). One error a token, of logits o and p = softmax(o):

    surprisal    delta = -log p(w)                         d delta / d o   = p - e_w
    power        delta = p(w)^{-p(w)} - 1                  d delta / d o   = p(w)^{1 - p(w)} (-log p(w) - 1) (e_w - p)
    entropy      delta = -sum pbar log pbar,               d delta / d o_k = (1/K) p_k (u - <p_k, u>),   u = -log pbar
                 pbar = mean_k p_k of K players

and through one token of an LSTM of L layers, from h of the top to h and c of each layer (`lstm_gradients`).

`power` is what the source's program computes where its text says surprisal: below p(w) = 1/e its descent makes the right word less likely.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["entropy", "lstm_gated", "lstm_gradients", "power", "surprisal"]

Logits = Float[Tensor, "B V"]
Hidden = Float[Tensor, "B H"]


def surprisal(o: Logits, gold: Int[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Logits]:
    """-log p of the words that came, and its gradient."""
    log_p = o.log_softmax(-1)
    return -log_p.gather(-1, gold[:, None])[:, 0], log_p.exp() - _one(gold, o)


def power(o: Logits, gold: Int[Tensor, "B"]) -> tuple[Float[Tensor, "B"], Logits]:
    """p^{-p} - 1 of the words that came, and its gradient."""
    log_p = o.log_softmax(-1)
    own = log_p.gather(-1, gold[:, None])
    p = own.exp()
    raised = (-p * own).exp()
    return raised[:, 0] - 1, p * raised * (-own - 1) * (_one(gold, o) - log_p.exp())


def entropy(o: Float[Tensor, "K B V"]) -> tuple[Float[Tensor, "B"], Float[Tensor, "K B V"]]:
    """Of the mean of K players' distributions, and its gradient for each player's logits."""
    log_p = o.log_softmax(-1)
    p = log_p.exp()
    log_mean = log_p.logsumexp(0) - torch.tensor(float(len(o)), dtype=o.dtype).log().to(o.device)
    u = -log_mean
    apart = p * (u - (p * u).sum(-1, keepdim=True)) / len(o)
    return (log_mean.exp() * u).sum(-1), apart


def _one(gold: Tensor, like: Tensor) -> Tensor:
    return F.one_hot(gold, like.shape[-1]).to(like.dtype)


def lstm_gated(a: Float[Tensor, "B G"], h: Hidden, c: Hidden, w_h: Float[Tensor, "G H"]) -> tuple[Hidden, Hidden, Float[Tensor, "B G"]]:
    """`lstm_cell`, with what its gates said: i f g o behind their squashes."""
    i, f, g, o = (a + F.linear(h, w_h)).chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], dim=-1)


def lstm_gradients(
    g_h: Hidden,
    gates: Sequence[Float[Tensor, "B G"]],
    before: Sequence[Hidden],
    c: Sequence[Hidden],
    w_x: Sequence[Float[Tensor, "G I"]],
) -> list[tuple[Hidden, Hidden]]:
    """(d delta / d h, d delta / d c) of each layer, from d delta / d h of the top one, within one token.

    `before` are the cells before that token; `w_x` the weights of a layer's inputs, which are h of the layer below.
    """
    found = []
    for layer in reversed(range(len(c))):
        i, f, g, o = gates[layer].chunk(4, dim=-1)
        t = c[layer].tanh()
        g_c = g_h * o * (1 - t * t)
        found.append((g_h, g_c))
        if layer:
            d_a = torch.cat(
                [g_c * g * i * (1 - i), g_c * before[layer] * f * (1 - f), g_c * i * (1 - g * g), g_h * t * o * (1 - o)], dim=-1
            )
            g_h = d_a @ w_x[layer]
    return found[::-1]

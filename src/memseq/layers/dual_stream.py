"""Two streams through one encoder: tokens and slots attend together, each by weights of its own.

Source: MemBART (Wu & Yu, arXiv:2209.07634). A layer of the encoder, post-norm as BART's, and a slot layer beside it:

    q, k, v = [W m_slots; W' x_tokens]       o = softmax(q k^T / sqrt(K)) v          one softmax over slots and tokens
    x = LN(x + W_o o);  x = LN(x + FFN(x))   each stream with its own W_o, LN and FFN

A token sees every slot and every token; a slot sees every token and, of the slots, itself. A token layer is any module with the parts of
`transformers.models.bart.BartEncoderLayer`; `SlotLayer` has parts of the same names, and begins as a copy of one.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memseq.ops.attention import attend

__all__ = ["SlotLayer", "both_streams", "seen_by_both"]


class _Projections(nn.Module):
    """The linear layers of an attention, copied."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.num_heads, self.dropout = source.num_heads, source.dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            _copied(layer) for layer in (source.q_proj, source.k_proj, source.v_proj, source.out_proj)
        )


class SlotLayer(nn.Module):
    """The slots' own weights in one layer: new parameters with the values of `source`'s, of its base where an adapter is put around it."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.self_attn = _Projections(source.self_attn)
        self.self_attn_layer_norm = _copied(source.self_attn_layer_norm)
        self.fc1, self.fc2 = _copied(source.fc1), _copied(source.fc2)
        self.final_layer_norm = _copied(source.final_layer_norm)
        self.activation_fn = source.activation_fn
        self.dropout, self.activation_dropout = source.dropout, source.activation_dropout


def _copied(source: Any) -> Any:
    """A linear layer or a norm with the weights of `source`."""
    source = getattr(source, "base_layer", source)
    if isinstance(source, nn.Linear):
        made: nn.Module = nn.Linear(source.in_features, source.out_features, bias=source.bias is not None)
    else:
        made = nn.LayerNorm(source.normalized_shape, eps=source.eps)
    made.to(source.weight)
    made.load_state_dict(source.state_dict())
    return made


def seen_by_both(n_slots: int, n_tokens: int, reach: Int[Tensor, "B"] | None, device: torch.device) -> Bool[Tensor, "#B 1 NL NL"] | None:
    """What sees what; `reach` [B] says how many of a row's tokens there are, None that all are. None where everything sees everything."""
    if n_slots < 2 and reach is None:
        return None
    S = n_slots + n_tokens
    place = torch.arange(S, device=device)
    mask = (place >= n_slots) | (place[:, None] >= n_slots) | (place == place[:, None])
    if reach is None:
        return mask[None, None]
    there = (place < n_slots) | (place - n_slots < reach.to(device).clamp_min(1)[:, None])  # a row of none is finite, and not used
    return (mask & there[:, None])[:, None]


def both_streams(
    layers: Iterable[nn.Module],
    slot_layers: Iterable[nn.Module],
    slots: Float[Tensor, "B N D"],
    x: Float[Tensor, "B L D"],
    mask: Bool[Tensor, "#B 1 NL NL"] | None,
    *,
    noisy: bool,
) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B L D"]]:
    """Slots and tokens through all layers; with dropout where `noisy` and the layer is in training."""
    N = slots.shape[1]
    for layer, own in zip(layers, slot_layers, strict=True):
        mine, theirs = _projected(own, slots), _projected(layer, x)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(mine, theirs, strict=True))
        attention = cast(Any, layer.self_attn)
        o = attend(q, k, v, mask=mask, dropout=attention.dropout if noisy and layer.training else 0.0)
        o = o.transpose(1, 2).flatten(2)
        slots, x = _finished(own, slots, o[:, :N], noisy), _finished(layer, x, o[:, N:], noisy)
    return slots, x


def _projected(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    heads = attention.num_heads, x.shape[2] // attention.num_heads
    q, k, v = (linear(x).unflatten(2, heads).transpose(1, 2) for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
    return q, k, v


def _finished(layer: Any, x: Tensor, o: Tensor, noisy: bool) -> Tensor:
    noisy = noisy and layer.training
    x = layer.self_attn_layer_norm(x + F.dropout(layer.self_attn.out_proj(o), layer.dropout, noisy))
    h = F.dropout(layer.activation_fn(layer.fc1(x)), layer.activation_dropout, noisy)
    return layer.final_layer_norm(x + F.dropout(layer.fc2(h), layer.dropout, noisy))

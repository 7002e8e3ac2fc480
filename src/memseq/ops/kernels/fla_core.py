"""The linear family by the kernels of `fla-core` (flash-linear-attention, MIT): our signatures, their conventions. Release 0.6.

    op            kernel                        what fla calls ours
    decay         chunk_simple_gla              log_a -> g; keys of a group are repeated for its heads
    delta_rule    chunk_gated_delta_rule        log_a -> g
    gla           chunk_gla                     log_w -> g
    rwkv6         chunk_rwkv6                   q -> r, log_w -> w
    kda           chunk_kda                     log_w -> g, of the state before it is erased, as ours
    channel       chunk_dplr_delta_rule         log_w -> gk; a finds in the state that has not faded, as ours

fla has tokens before heads, [B, T, H, ...], and multiplies queries by 1 / sqrt(K) unless it is told a scale: here 1, because our ops
take queries as they come. Gates are natural logarithms in both. What fla calls the state is our S, [B, H, K, V], not `state_v_first`.
Keys are not normalised and gates not activated inside. Vectors of one call share a dtype; gates and states are float32.

`chunk_size` is ours alone: it changes speed and rounding, and fla chooses its own. Differentiable in everything, S included.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

__all__ = ["channel", "decay", "delta_rule", "gla", "kda", "rwkv6"]

Read = tuple[Tensor, Tensor]


def decay(q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    if (share := v.shape[1] // k.shape[1]) > 1:
        q, k = (z.repeat_interleave(share, dim=1) for z in (q, k))
    q, k, v = _vectors(q, k, v)
    return _ours(import_module("fla.ops.simple_gla").chunk_simple_gla(q, k, v, g=_gate(log_a), **_state(S)), S)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_a: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    q, k, v = _vectors(q, k, v)
    kernel = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return _ours(kernel(q, k, v, g=_gate(log_a), beta=_gate(beta), **_state(S)), S)


def gla(q: Tensor, k: Tensor, v: Tensor, log_w: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    q, k, v = _vectors(q, k, v)
    return _ours(import_module("fla.ops.gla").chunk_gla(q, k, v, g=_gate(log_w), **_state(S)), S)


def rwkv6(q: Tensor, k: Tensor, v: Tensor, u: Tensor, log_w: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    q, k, v = _vectors(q, k, v)
    return _ours(import_module("fla.ops.rwkv6").chunk_rwkv6(q, k, v, w=_gate(log_w), u=u.to(q.dtype), **_state(S)), S)


def kda(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_w: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    q, k, v = _vectors(q, k, v)
    return _ours(import_module("fla.ops.kda").chunk_kda(q, k, v, g=_gate(log_w), beta=_gate(beta), **_state(S)), S)


def channel(q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, log_w: Tensor, S: Tensor, *, chunk_size: int) -> Read:
    q, k, v, a, b = _vectors(q, k, v, a, b)
    kernel = import_module("fla.ops.generalized_delta_rule").chunk_dplr_delta_rule
    return _ours(kernel(q, k, v, a=a, b=b, gk=_gate(log_w), **_state(S)), S)


def _vectors(*vectors: Tensor) -> list[Tensor]:
    """[B, H, T, ...] -> [B, T, H, ...], in the widest dtype among them."""
    dtype = vectors[0].dtype
    for z in vectors[1:]:
        dtype = torch.promote_types(dtype, z.dtype)
    return [z.to(dtype).transpose(1, 2).contiguous() for z in vectors]


def _gate(gate: Tensor) -> Tensor:
    return gate.to(torch.float32).transpose(1, 2).contiguous()


def _state(S: Tensor) -> dict[str, Any]:
    return {"scale": 1.0, "initial_state": S.contiguous(), "output_final_state": True}


def _ours(read: tuple[Tensor, Tensor], S: Tensor) -> Read:
    y, end = read
    return y.transpose(1, 2).to(S.dtype), end

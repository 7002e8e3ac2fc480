"""Titans with one step a segment: what its tokens have to say is gathered, and the weights move when the segment is full.

Source: gates by chunk as in lucidrains' titans-pytorch (`NeuralMemory` with `batch_size` equal to `chunk_size`), the package that most use;
steps by large chunks are also those of Test-Time Training Done Right (Zhang et al., arXiv:2505.23884). With b tokens a segment, W and S at
its first token, u_t as in `ops/titans.py`, and the logits f_t, m_t of forgetting and momentum:

    N     = sum over the segment of theta_t u_t
    S    <- eta S - N,        eta   = sigmoid(mean m_t)
    W    <- (1 - alpha) W + S,  alpha = sigmoid(mean f_t)
    y_t   = M_W(q_t): tokens of the segment read the W before it; its last one, which moves W, the W after it

With `home`, forgetting draws to these weights in place of zero: alpha of them is added to W.

No weights differ by token, so a segment costs the products of M for keys, queries and their gradients and nothing else: at two layers about
half of what `titans_chunkwise` needs. The price is that a token is not read before its segment is full.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.contract import empty
from memseq.ops.fast_network import Network
from memseq.ops.precision import unrounded
from memseq.ops.titans import cuts_of, drawn, shortened
from memseq.state import choose

__all__ = ["GatheredState", "SegmentGates", "segments_chunkwise", "segments_recurrent"]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Weights = tuple[Tensor, ...]


class GatheredState(NamedTuple):
    weights: Weights  # W, where the open segment takes its gradients and is read
    momentum: Weights  # S; () where there is none
    gathered: Weights  # N so far
    gates: Float[Tensor, "B H G"]  # logits of the gates there are, summed so far
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host

    @property
    def anchor(self) -> Weights:
        """The weights at the open segment's first token: all of it has these."""
        return self.weights


class SegmentGates(NamedTuple):
    forget: Float[Tensor, "B H T"] | None  # f, before the sigmoid; None: nothing is forgotten
    momentum: Float[Tensor, "B H T"] | None  # m, likewise; None: S = -N
    step: Float[Tensor, "B H T"]  # theta

    def logits(self) -> Float[Tensor, "B H G T"]:
        present = [z for z in (self.forget, self.momentum) if z is not None]
        return torch.stack(present, dim=2) if present else self.step.new_empty(*self.step.shape[:2], 0, self.step.shape[2])


def segments_chunkwise(
    network: Network,
    q: Keys | None,
    k: Keys,
    v: Values,
    gates: SegmentGates,
    state: GatheredState,
    *,
    segment_length: int,
    limit: float | None = None,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], GatheredState]:
    """Equal to `segments_recurrent`, by pieces that end where any row's segment does. No outputs without queries."""
    dtype, y, cuts = state.weights[0].dtype, [], cuts_of(state.position, k.shape[2], segment_length, segment_length)
    k, v, step, logits = (z.to(dtype) for z in (k, v, gates.step, gates.logits()))
    # the last token of a piece reads what the piece leaves: with the tokens that begin the next
    asked: Iterable[Tensor | None] = [None] * (len(cuts) + 1) if q is None else q.to(dtype).split([cuts[0] - 1, *cuts[1:], 1], dim=2)
    pieces = zip(*(z.split(cuts, dim=2) for z in (k, v, step)), logits.split(cuts, dim=3), strict=True)
    with unrounded(k):
        for q_i, piece in zip(asked, [*pieces, None], strict=True):
            if q_i is not None and q_i.shape[2]:
                y.append(network(q_i, state.weights))
            if piece is not None:
                state = _gather(network, *piece, state, gates, segment_length, limit, home)
    return torch.cat(y, dim=2) if y else v[:, :, :0], state


def segments_recurrent(
    network: Network,
    q: Keys,
    k: Keys,
    v: Values,
    gates: SegmentGates,
    state: GatheredState,
    *,
    segment_length: int,
    limit: float | None = None,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], GatheredState]:
    """The definition, token by token, with every gradient formed as the weight it is."""
    dtype, y, logits = state.weights[0].dtype, [], gates.logits()
    q, k, v, step, logits = (z.to(dtype) for z in (q, k, v, gates.step, logits))
    with unrounded(k):
        for t in range(k.shape[2]):
            now = slice(t, t + 1)
            prediction, way = network.kept(k[:, :, now], state.weights)
            factors = network.factors(prediction - v[:, :, now], way, state.weights)
            u = [layer.summed(f, torch.ones_like(step[:, :, now])) for layer, f in zip(network.fast, factors, strict=True)]
            theta = step[:, :, t]
            if limit is not None:
                squared: Any = sum(g.flatten(2).square().sum(-1) for g in u)
                theta = theta * torch.rsqrt(1 + squared / limit**2)
            gathered = tuple(N + _wide(theta, g) * g for N, g in zip(state.gathered, u, strict=True))
            state = state._replace(gathered=gathered, gates=state.gates + logits[..., t], position=state.position + 1)
            state = _closed(state, gates, segment_length, home)
            y.append(network(q[:, :, now], state.weights))
    return torch.cat(y, dim=2), state


def _gather(
    network: Network,
    k: Keys,
    v: Values,
    step: Float[Tensor, "B H T"],
    logits: Float[Tensor, "B H G T"],
    state: GatheredState,
    gates: SegmentGates,
    segment_length: int,
    limit: float | None,
    home: Weights | None,
) -> GatheredState:
    """The state after a piece that lies in one segment."""
    prediction, way = network.kept(k, state.weights)
    factors = network.factors(prediction - v, way, state.weights)
    if limit is not None:
        step = step * shortened(network, factors, limit)
    if k.shape[2] == segment_length:
        carry, (keep, eta) = state.momentum or [None] * len(factors), _gates_of(logits.mean(-1), gates)
        parts = zip(network.fast, state.weights, carry, factors, strict=True)
        return _moved(state, [layer.stepped(W, S, f, step, keep, eta) for layer, W, S, f in parts], keep, home)
    gathered = tuple(N + layer.summed(f, step) for layer, f, N in zip(network.fast, factors, state.gathered, strict=True))
    state = state._replace(gathered=gathered, gates=state.gates + logits.sum(-1), position=state.position + k.shape[2])
    return _closed(state, gates, segment_length, home)


def _closed(state: GatheredState, gates: SegmentGates, segment_length: int, home: Weights | None) -> GatheredState:
    """The state with the weights moved in rows whose segment is full."""
    full = state.position == segment_length
    if not full.any():
        return state
    keep, eta = _gates_of(state.gates / segment_length, gates)
    S_end = [-N for N in state.gathered]
    if eta is not None:
        S_end = [_wide(eta, S) * S + N for S, N in zip(state.momentum, S_end, strict=True)]
    W_end = [(W if keep is None else _wide(keep, W) * W) + S for W, S in zip(state.weights, S_end, strict=True)]
    moved = _moved(state, list(zip(W_end, S_end, strict=True)), keep, home)
    return moved if full.all() else choose(full, moved, state)


def _gates_of(means: Float[Tensor, "B H G"], gates: SegmentGates) -> tuple[Tensor | None, Tensor | None]:
    """What a segment keeps and carries on, None where all and nothing."""
    each = iter(means.unbind(-1))
    keep = None if gates.forget is None else torch.sigmoid(-next(each))
    return keep, None if gates.momentum is None else torch.sigmoid(next(each))


def _moved(
    state: GatheredState, ends: Sequence[tuple[Tensor, Tensor]], keep: Float[Tensor, "B H"] | None, home: Weights | None
) -> GatheredState:
    """At a border: nothing is gathered."""
    weights, momentum = zip(*ends, strict=True)
    weights = drawn(weights, keep, home)
    nothing = tuple(empty(W, *W.shape) for W in weights)
    return GatheredState(
        weights, momentum if state.momentum else (), nothing, torch.zeros_like(state.gates), torch.zeros_like(state.position)
    )


def _wide(gate: Float[Tensor, "B H"], weight: Tensor) -> Tensor:
    """A number a head, over a weight."""
    return gate[(..., *[None] * (weight.ndim - 2))]

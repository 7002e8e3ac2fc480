"""The Omega rule: a memory descends on what the last c tokens have to say, not on the last token alone.

Source: ATLAS (Behrouz et al., arXiv:2505.23735). M is the fast network (`ops/fast_network.py`), u_i the gradient of token i at the anchor,
the weights of the open segment's first token, and gamma_i how much token i counts:

    U_t = sum over t - c < i <= t of gamma_i u_i
    S_t = eta_t S_{t-1} - theta_t U_t,   W_t = a_t W_{t-1} + S_t                       descent, as in `ops/titans.py`
    S_t = eta_t S_{t-1} + U_t,           W_t = a_t W_{t-1} - theta_t NS(S_t)           Muon: `ops/newton_schulz.py` on every matrix
    y_t = M_{W_t}(q_t)

With c = 1 and gamma = 1 the first is Titans. A chunk of L tokens has E = L + c - 1 gradients: those of the c - 1 tokens before it are
taken anew, at the anchor of the chunk's own segment. With Omega[t, i] = gamma_i inside the window and 0 outside,

    descent   G = A_a A_eta diag(theta) Omega,  [L, E], and everything else as in Titans
    Muon      a root of S_t cannot be mixed, but none of them is formed: `ops/muon.py`

The window is raw: keys before any feature map, values, and gamma, the newest last; gamma = 0 where nothing was read yet.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from memseq.ops.fast_network import Factors, Network
from memseq.ops.muon import momenta, moved_by_muon, read_by_muon
from memseq.ops.newton_schulz import newton_schulz
from memseq.ops.precision import unrounded
from memseq.ops.titans import (
    FastState,
    Gates,
    close_segments,
    cuts_of,
    limited,
    mixtures,
    move,
    pieces_of,
    precise_inputs,
    products,
    read_mixed,
)

__all__ = ["Window", "omega_chunkwise", "omega_recurrent", "window_weights"]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Tokens = Float[Tensor, "B H T"]
Slope = Callable[[Values, Values], Values]  # prediction, value -> the loss's gradient at the prediction
Features = Callable[[Keys], Float[Tensor, "B H T F"]]


class Window(NamedTuple):
    """The c - 1 tokens before the next, newest last."""

    keys: Float[Tensor, "B H c K"]
    values: Float[Tensor, "B H c V"]
    weights: Float[Tensor, "B H c"]  # gamma; 0 where nothing was read yet

    def followed_by(self, k: Keys, v: Values, gamma: Tokens) -> "Window":
        return Window(*(torch.cat([old, new], dim=2) for old, new in zip(self, (k, v, gamma), strict=True)))

    def last(self, n: int) -> "Window":
        """The newest n of them, as tensors of their own."""
        return Window(*(t[:, :, t.shape[2] - n :].clone() for t in self))


def window_weights(gamma: Float[Tensor, "B H E"], tokens: int) -> Float[Tensor, "B H T E"]:
    """Omega: each of the last `tokens` of E counts itself and the E - tokens before it."""
    E = gamma.shape[-1]
    ago = torch.arange(E - tokens, E, device=gamma.device)[:, None] - torch.arange(E, device=gamma.device)
    return gamma[..., None, :] * ((ago >= 0) & (ago <= E - tokens))


def omega_chunkwise(
    network: Network,
    q: Keys | None,
    k: Keys,
    v: Values,
    gamma: Tokens,
    gates: Gates,
    state: FastState,
    window: Window,
    *,
    slope: Slope,
    features: Features,
    segment_length: int,
    muon: int | None = None,
    chunk_size: int = 64,
    limit: float | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState, Window]:
    """Equal to `omega_recurrent`. `muon` is the number of Newton-Schulz iterations, None for plain descent. No outputs without queries."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    held, gamma = window.keys.shape[2], gamma.to(k.dtype)
    y, cuts = [], cuts_of(state.position, k.shape[2], segment_length, chunk_size)
    with unrounded(k):
        for (q_i, k_i, v_i, gates_i), gamma_i in zip(pieces_of(q, k, v, gates, cuts), gamma.split(cuts, dim=2), strict=True):
            L, seen = k_i.shape[2], window.followed_by(k_i, v_i, gamma_i)
            prediction, way = network.kept(features(seen.keys), state.anchor)
            factors = limited(network, network.factors(slope(prediction, seen.values), way, state.anchor), limit)
            omega = window_weights(seen.weights, L)
            asked = None if q_i is None else features(q_i)
            if muon is None:
                mix, momentum = mixtures(gates_i)
                mix = mix._replace(surprise=mix.surprise @ omega)
                if momentum is not None:
                    momentum = momentum._replace(surprise=(momentum.surprise[..., None, :] @ omega)[..., 0, :])
                if asked is not None:
                    y.append(read_mixed(network, asked, state, factors, mix))
                state = move(network, state, factors, mix.row(-1), momentum)
            else:
                said, state = _muon(network, gates_i, state, factors, omega, muon, asked)
                if said is not None:
                    y.append(said)
            state, window = close_segments(state, L, segment_length), seen.last(held)
    return torch.cat(y, dim=2) if y else v[:, :, :0], state, window


def omega_recurrent(
    network: Network,
    q: Keys,
    k: Keys,
    v: Values,
    gamma: Tokens,
    gates: Gates,
    state: FastState,
    window: Window,
    *,
    slope: Slope,
    features: Features,
    segment_length: int,
    muon: int | None = None,
    limit: float | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState, Window]:
    """The definition, token by token, with every gradient formed as the weight it is: what the other form is tested against."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    held, y = window.keys.shape[2], []
    with unrounded(k):
        for t in range(k.shape[2]):
            now = slice(t, t + 1)
            seen = window.followed_by(k[:, :, now], v[:, :, now], gamma[:, :, now].to(k.dtype))
            prediction, way = network.kept(features(seen.keys), state.anchor)
            factors = limited(network, network.factors(slope(prediction, seen.values), way, state.anchor), limit)
            weights, momentum = [], []
            for layer, W, S, of in zip(network.fast, state.weights, state.momentum or [None] * len(factors), factors, strict=True):
                keep, eta, theta = gates.each(lambda z: z[:, :, t][(..., *[None] * len(layer.shape))])  # noqa: B023 (called at once)
                U = layer.summed(of, seen.weights)
                if muon is None:
                    step = -theta * U if eta is None or S is None else eta.exp() * S - theta * U
                    momentum.append(step)
                else:
                    momentum.append(U if eta is None or S is None else eta.exp() * S + U)
                    step = -theta * newton_schulz(momentum[-1], muon)
                weights.append(keep.exp() * W + step)
            state = state._replace(weights=tuple(weights), momentum=tuple(momentum) if state.momentum else ())
            y.append(network(features(q[:, :, now]), weights))
            state, window = close_segments(state, 1, segment_length), seen.last(held)
    return torch.cat(y, dim=2), state, window


def _muon(
    network: Network, gates: Gates, state: FastState, factors: Sequence[Factors], omega: Tensor, steps: int, q: Keys | None
) -> tuple[Values | None, FastState]:
    """What is read, and the state at the chunk's end."""
    kept = gates.keep.cumsum(-1)
    taken = products(kept) * gates.step[..., None, :]
    kept = kept.exp()
    summed, carried = omega, None
    if gates.momentum is not None:
        carried = gates.momentum.cumsum(-1)
        summed, carried = products(carried) @ omega, carried.exp()
    carry = state.momentum or [None] * len(factors)
    every = [momenta(of, S, carried, summed, steps) for of, S in zip(factors, carry, strict=True)]
    y = None if q is None else network.run(q, lambda i, layer, X: read_by_muon(X, state.weights[i], every[i], kept, taken))
    ends = [moved_by_muon(W, S, kept[..., -1], taken[..., -1, :], summed[..., -1, :]) for W, S in zip(state.weights, every, strict=True)]
    weights, momentum = zip(*ends, strict=True)
    return y, state._replace(weights=weights, momentum=momentum if state.momentum else ())

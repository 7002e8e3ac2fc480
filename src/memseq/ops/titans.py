"""Titans: gradient descent with momentum and forgetting, one step a token, on the weights of a network; and its dual form.

Source: Titans (Behrouz et al., arXiv:2501.00663); the dual form for networks with momentum is derived in `docs/systems/titans.md`.
M is the fast network (`ops/fast_network.py`), W all of its weights, K and V the rows k_t and v_t of a chunk:

    u_t = gradient of 1/2 |M(k_t) - v_t|^2 at the anchor           surprise; the anchor is W at the segment's first token
    S_t = eta_t S_{t-1} - theta_t u_t                              momentum
    W_t = a_t W_{t-1} + S_t,   a_t = 1 - alpha_t                   forgetting
    y_t = M_{W_t}(q_t), or M_{W_{t-1}}(q_t)                        an inclusive or an exclusive read

The segment's length b (`segment_length`) is part of the function; b = 1 is the strict online rule. Unrolled in a chunk of L tokens:

    W_t = beta_t W_0 + f_t S_0 - sum_j G_tj u_j                    beta_t = a_1 ... a_t,   m_t = eta_1 ... eta_t
    A_a[t, j] = a_{j+1} ... a_t for j <= t, else 0;  A_eta too     f = A_a m,   G = A_a A_eta diag(theta)
    S_L = m_L S_0 - sum_j A_eta[L, j] theta_j u_j

With `home`, forgetting draws to these weights W* in place of zero: W_t = W* + a_t (W_{t-1} - W*) + S_t, so that (1 - beta_t) W* is added
to all of the above, and u W_t has one product more.

u_j of a weight is X_j^T g_j, so a query that meets the weight W_t needs no W_t:  u W_t = beta_t u W_0 + f_t u S_0 - ((u X^T) * G) g.
Weights, gates and products are float32 at least. `limit` bounds a token's gradient over all weights: u_t / sqrt(1 + |u_t|^2 / limit^2).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memseq.errors import ConfigError
from memseq.ops.fast_network import Factors, Fast, Linear, Mixture, Network
from memseq.ops.precision import unrounded

__all__ = [
    "FastState",
    "Gates",
    "before",
    "close_segments",
    "cuts_of",
    "drawn",
    "limited",
    "mixtures",
    "move",
    "one_step",
    "pieces_of",
    "precise_inputs",
    "products",
    "read_mixed",
    "shortened",
    "squared_error",
    "surprise",
    "titans_chunkwise",
    "titans_online_linear",
    "titans_recurrent",
    "titans_scan",
]

Keys = Float[Tensor, "B H T K"]
Values = Float[Tensor, "B H T V"]
Weights = tuple[Tensor, ...]  # one a fast weight of the network: [B, H, I, O] or [B, H, O]
Loss = Callable[[Values, Values], Values]  # prediction, target -> the gradient of the loss at the prediction


class FastState(NamedTuple):
    weights: Weights  # W
    momentum: Weights  # S; () where there is none
    anchor: Weights  # W at the open segment's first token, where gradients are taken
    position: Int[Tensor, "B"]  # tokens in the open segment, on the host


class Gates(NamedTuple):
    keep: Float[Tensor, "B H T"]  # log(1 - alpha), at most 0
    momentum: Float[Tensor, "B H T"] | None  # log eta, at most 0; None: S_t = -theta_t u_t
    step: Float[Tensor, "B H T"]  # theta

    def each(self, function: Callable[[Tensor], Tensor]) -> "Gates":
        return Gates(function(self.keep), None if self.momentum is None else function(self.momentum), function(self.step))


def squared_error(prediction: Values, target: Values) -> Values:
    """The gradient of 1/2 |prediction - target|^2."""
    return prediction - target


def shortened(network: Network, factors: Sequence[Factors], limit: float) -> Float[Tensor, "B H T"]:
    """By what a token's gradient, as one vector over all weights, is multiplied to be shorter than `limit`, softly."""
    squared: Any = sum(layer.squared(f) for layer, f in zip(network.fast, factors, strict=True))
    return torch.rsqrt(1 + squared / limit**2)


def limited(network: Network, factors: Sequence[Factors], limit: float | None) -> list[Factors]:
    """Every token's gradient made shorter than `limit`."""
    if limit is None:
        return list(factors)
    shorter = shortened(network, factors, limit)[..., None]
    return [Factors(f.inputs, f.errors * shorter) for f in factors]


def surprise(network: Network, anchor: Weights, k: Keys, v: Values, *, loss: Loss = squared_error, limit: float | None = None):
    """The gradient of each token's loss at the anchor, as factors, one pair a fast weight."""
    prediction, way = network.kept(k, anchor)
    return limited(network, network.factors(loss(prediction, v), way, anchor), limit)


def mixtures(gates: Gates) -> tuple[Mixture, Mixture | None]:
    """What W_1 ... W_L are made of over one chunk, and S_L (of S_0 and gradients), None where there is no momentum."""
    kept = gates.keep.cumsum(-1)
    A = products(kept)
    if gates.momentum is None:
        return Mixture(kept.exp(), None, A * gates.step[..., None, :]), None
    carried = gates.momentum.cumsum(-1)
    A_eta = products(carried) * gates.step[..., None, :]
    both = A @ torch.cat([carried.exp()[..., None], A_eta], dim=-1)
    return Mixture(kept.exp(), both[..., 0], both[..., 1:]), Mixture(carried[..., -1].exp(), None, A_eta[..., -1, :])


def before(mix: Mixture) -> Mixture:
    """The mixtures one token earlier: the first is W_0 itself."""
    ones, rest = torch.ones_like(mix.weights[..., :1]), mix.weights[..., :-1]
    f = None if mix.momentum is None else torch.cat([torch.zeros_like(ones), mix.momentum[..., :-1]], dim=-1)
    none = torch.zeros_like(mix.surprise[..., :1, :])
    return Mixture(torch.cat([ones, rest], dim=-1), f, torch.cat([none, mix.surprise[..., :-1, :]], dim=-2))


def read_mixed(
    network: Network, q: Keys, state: FastState, factors: Sequence[Factors], mix: Mixture, home: Weights | None = None
) -> Values:
    """M_{W_t}(q_t) for every t, W_t the mixture of row t: every product with a weight is mixed in its place."""
    carry = state.momentum or [None] * len(factors)

    def product(i: int, layer: Fast, X: Tensor) -> Tensor:
        said = layer.mixed(X, state.weights[i], carry[i], factors[i], mix)
        return said if home is None else torch.addcmul(said, layer.times(X, home[i]), (1 - mix.weights)[..., None])

    return network.run(q, product)


def move(
    network: Network,
    state: FastState,
    factors: Sequence[Factors],
    end: Mixture,
    momentum: Mixture | None,
    home: Weights | None = None,
) -> FastState:
    """W_L and S_L from the last rows of their mixtures."""
    carry = state.momentum or [None] * len(factors)
    ends = [layer.moved(W, S, of, end, momentum) for layer, W, S, of in zip(network.fast, state.weights, carry, factors, strict=True)]
    weights, carried = zip(*ends, strict=True)
    weights = drawn(weights, end.weights, home)
    return state._replace(weights=weights, momentum=carried if state.momentum else ())


def drawn(weights: Weights, kept: Float[Tensor, "B H"] | None, home: Weights | None) -> Weights:
    """The weights with the share 1 - kept of `home`, for what forgetting took; as they are where that draws to zero."""
    if home is None or kept is None:
        return weights
    return tuple(torch.addcmul(W, (1 - kept)[(..., *[None] * (W.ndim - 2))], rest) for W, rest in zip(weights, home, strict=True))


def close_segments(state: FastState, read: int, segment_length: int) -> FastState:
    """The state `read` tokens on: rows whose segment is full take their weights as the next anchor."""
    position = (state.position + read) % segment_length
    closed = position == 0
    if closed.all():
        return state._replace(anchor=state.weights, position=position)
    if not closed.any():
        return state._replace(position=position)
    rows = closed.to(state.weights[0].device)
    anchor = tuple(torch.where(rows.reshape(-1, *[1] * (W.ndim - 1)), W, A) for W, A in zip(state.weights, state.anchor, strict=True))
    return state._replace(anchor=anchor, position=position)


def titans_chunkwise(
    network: Network,
    q: Keys | None,
    k: Keys,
    v: Values,
    gates: Gates,
    state: FastState,
    *,
    segment_length: int,
    chunk_size: int = 64,
    exclusive: bool = False,
    limit: float | None = None,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """Equal to `titans_recurrent`, in the dual form: chunks of at most `chunk_size` tokens that lie in one segment in every row.

    The outputs have N = T rows, or none without queries: what it takes to get to the state alone. `home`, [H, I, O] and [H, O], are the
    weights that forgetting draws to; None: zero.
    """
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    y, cuts = [], cuts_of(state.position, k.shape[2], segment_length, chunk_size)
    with unrounded(k):
        for q_i, k_i, v_i, gates_i in pieces_of(q, k, v, gates, cuts):
            factors = surprise(network, state.anchor, k_i, v_i)
            if limit is not None:  # a shorter gradient is a smaller step
                gates_i = gates_i._replace(step=gates_i.step * shortened(network, factors, limit))
            mix, momentum = mixtures(gates_i)
            if q_i is not None:
                y.append(read_mixed(network, q_i, state, factors, before(mix) if exclusive else mix, home))
            state = close_segments(move(network, state, factors, mix.row(-1), momentum, home), k_i.shape[2], segment_length)
    return _joined(y, v), state


def titans_recurrent(
    network: Network,
    q: Keys,
    k: Keys,
    v: Values,
    gates: Gates,
    state: FastState,
    *,
    segment_length: int,
    exclusive: bool = False,
    limit: float | None = None,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """The definition, token by token, with every gradient formed as the weight it is: what the other forms are tested against."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    y = []
    with unrounded(k):
        for t in range(k.shape[2]):
            now = slice(t, t + 1)
            old = state
            prediction, way = network.kept(k[:, :, now], state.anchor)
            factors = network.factors(prediction - v[:, :, now], way, state.anchor)
            state = one_step(state, factors, gates.each(lambda z: z[:, :, t]), limit, home)  # noqa: B023 (called at once)
            y.append(network(q[:, :, now], (old if exclusive else state).weights))
            state = close_segments(state, 1, segment_length)
    return _joined(y, v), state


def one_step(state: FastState, factors: Sequence[Factors], gates: Gates, limit: float | None, home: Weights | None = None) -> FastState:
    """One token's step, of gates [B, H], with its gradient formed as the weights it is."""
    u = [_formed(f, W) for f, W in zip(factors, state.weights, strict=True)]
    if limit is not None:
        norm: Any = sum(g.flatten(2).square().sum(-1) for g in u).sqrt()
        u = [g / (1 + (norm / limit) ** 2).sqrt()[(..., *[None] * (g.ndim - 2))] for g in u]
    weights, momentum = [], []
    for i, g in enumerate(u):
        keep, eta, theta = gates.each(lambda z: z[(..., *[None] * (g.ndim - 2))])  # noqa: B023 (called at once)
        S = -theta * g if eta is None else eta.exp() * state.momentum[i] - theta * g
        momentum.append(S)
        W = state.weights[i]
        weights.append((keep.exp() * W if home is None else home[i] + keep.exp() * (W - home[i])) + S)
    return state._replace(weights=tuple(weights), momentum=tuple(momentum) if gates.momentum is not None else ())


def titans_scan(
    network: Network,
    q: Keys,
    k: Keys,
    v: Values,
    gates: Gates,
    state: FastState,
    *,
    segment_length: int,
    chunk_size: int = 64,
    exclusive: bool = False,
    limit: float | None = None,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """The paper's own parallel form (its section 3.2): the weights of every token, by two associative scans. L |W| numbers a head."""
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    y, cuts = [], cuts_of(state.position, k.shape[2], segment_length, chunk_size)
    with unrounded(k):
        for q_i, k_i, v_i, (keep, eta, theta) in pieces_of(q, k, v, gates, cuts):
            factors = surprise(network, state.anchor, k_i, v_i, limit=limit)
            weights, momentum = [], []
            for i, layer in enumerate(network.fast):
                over = (..., *[None] * len(layer.shape))
                X, g = factors[i]
                S = -theta[over] * (X[..., :, None] * g[..., None, :] if len(layer.shape) == 2 else X * g)
                if eta is not None:
                    S = _scan(eta.exp()[over], S, state.momentum[i])
                    momentum.append(S)
                a = keep.exp()[over]
                weights.append(_scan(a, S if home is None else S + (1 - a) * home[i][:, None], state.weights[i]))
            start = [torch.cat([W[:, :, None], later[:, :, :-1]], dim=2) for W, later in zip(state.weights, weights, strict=True)]
            y.append(network(q_i[:, :, :, None], start if exclusive else weights)[..., 0, :])
            state = state._replace(weights=tuple(W[:, :, -1] for W in weights), momentum=tuple(S[:, :, -1] for S in momentum))
            state = close_segments(state, k_i.shape[2], segment_length)
    return _joined(y, v), state


def titans_online_linear(
    q: Keys | None,
    k: Keys,
    v: Values,
    gates: Gates,
    state: FastState,
    *,
    chunk_size: int = 64,
    exclusive: bool = False,
    home: Weights | None = None,
) -> tuple[Float[Tensor, "B H N V"], FastState]:
    """Equal to `titans_recurrent` with a network of one matrix, `segment_length` = 1 and no limit: the strict online rule, in chunks.

    The errors e_t = k_t W_{t-1} - v_t of a chunk depend on one another linearly: with bars for the mixtures of W_{t-1},
    (I + strictLower(G_bar * K K^T)) e = beta_bar * (K W_0) + f_bar * (K S_0) - V, one triangular system a chunk.
    """
    q, k, v, gates = precise_inputs(q, k, v, gates, state)
    network = Network(layers=(Linear(inputs=k.shape[3], outputs=v.shape[3]),))
    y, cuts = [], cuts_of(torch.zeros(1), k.shape[2], k.shape[2], chunk_size)
    with unrounded(k):
        for q_i, K, V, gates_i in pieces_of(q, k, v, gates, cuts):
            (W,) = state.weights
            mix, momentum = mixtures(gates_i)
            bar = before(mix)
            e = bar.weights[..., None] * (K @ W) - V
            if bar.momentum is not None:
                e = e + bar.momentum[..., None] * (K @ state.momentum[0])
            if home is not None:
                e = e + (1 - bar.weights)[..., None] * (K @ home[0])
            e = torch.linalg.solve_triangular(bar.surprise * (K @ K.mT), e, upper=False, unitriangular=True)
            factors = [Factors(K, e)]
            if q_i is not None:
                y.append(read_mixed(network, q_i, state, factors, bar if exclusive else mix, home))
            state = close_segments(move(network, state, factors, mix.row(-1), momentum, home), 1, 1)
    return _joined(y, v), state


def products(c: Float[Tensor, "... L"]) -> Float[Tensor, "... L L"]:
    """A[t, j] = exp(c_t - c_j) for j <= t, else 0. The mask comes before the exponential, which would overflow above the diagonal."""
    above = torch.full((c.shape[-1],) * 2, -torch.inf, dtype=c.dtype, device=c.device).triu_(1)
    return (c[..., :, None] - c[..., None, :]).add_(above).exp_()


def _formed(of: Factors, W: Tensor) -> Tensor:
    """One token's gradient as a weight."""
    return of.inputs.mT @ of.errors if W.ndim == 4 else (of.inputs * of.errors)[..., 0, :]


def _scan(a: Float[Tensor, "B H T ..."], u: Float[Tensor, "B H T ..."], start: Tensor) -> Float[Tensor, "B H T ..."]:
    """h_t = a_t h_{t-1} + u_t for all t, h_0 = start: pairs (a, u) joined over distances 1, 2, 4, ..."""
    u = torch.cat([(u[:, :, 0] + a[:, :, 0] * start)[:, :, None], u[:, :, 1:]], dim=2)
    distance = 1
    while distance < u.shape[2]:
        u = torch.cat([u[:, :, :distance], u[:, :, distance:] + a[:, :, distance:] * u[:, :, :-distance]], dim=2)
        a = torch.cat([a[:, :, :distance], a[:, :, distance:] * a[:, :, :-distance]], dim=2)
        distance *= 2
    return u


def precise_inputs(q: Tensor | None, k: Tensor, v: Tensor, gates: Gates, state: FastState) -> tuple[Any, Tensor, Tensor, Gates]:
    """Everything in the precision of the weights."""
    dtype = state.weights[0].dtype
    if (gates.momentum is None) != (not state.momentum):
        raise ConfigError("gates and state must agree on momentum: a state without momentum needs gates.momentum=None, and the reverse")
    return None if q is None else q.to(dtype), k.to(dtype), v.to(dtype), gates.each(lambda z: z.to(dtype))


def cuts_of(position: Tensor, n_tokens: int, segment_length: int, chunk_size: int) -> list[int]:
    """The lengths of pieces of at most `chunk_size` tokens, none of which crosses the border of any row's segment."""
    position, cuts = position.clone(), []
    while n_tokens:
        cuts.append(min(chunk_size, n_tokens, segment_length - int(position.max())))
        position, n_tokens = (position + cuts[-1]) % segment_length, n_tokens - cuts[-1]
    return cuts


def pieces_of(q: Tensor | None, k: Tensor, v: Tensor, gates: Gates, cuts: list[int]) -> Iterator[tuple[Any, Tensor, Tensor, Gates]]:
    """Pieces of all inputs, by one split of each: the gradient of a split is one concatenation, that of a slice a tensor of zeros."""
    pieces: Any = ([None] * len(cuts) if z is None else z.split(cuts, dim=2) for z in (q, k, v, *gates))
    for q_i, k_i, v_i, *gates_i in zip(*pieces, strict=True):
        yield q_i, k_i, v_i, Gates(*gates_i)


def _joined(y: list[Tensor], v: Tensor) -> Tensor:
    return torch.cat(y, dim=2) if len(y) > 1 else y[0] if y else v[:, :, :0]

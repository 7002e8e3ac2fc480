"""Linear attention with Taylor features: the softmax's kernel to second order, so that a matrix of fixed size stands for the past.

Source: Based (Arora et al., arXiv:2402.18668); with an encoded prefix, Just read twice (Arora et al., arXiv:2407.05483).

    phi(x) = [1,  x_i / d^(1/4),  x_i^2 / sqrt(2 d),  x_i x_j / sqrt(d) for i < j]       x of size d
    phi(q) . phi(k) = 1 + z + z^2 / 2,   z = q . k / sqrt(d)                             exp(z) to second order
    S_t = S_(t-1) + phi(k_t)^T v_t,   n_t = n_(t-1) + phi(k_t)                           write
    y_t = phi(q_t) S_t / phi(q_t) . n_t                                                  read

The published features hold x_i x_j and x_j x_i apart, 1 + d + d^2 numbers; here each product stands once, 1 + d + d (d + 1) / 2: the
same kernel in half the state. S and n are one matrix M = [S, n], the values with a column of ones behind them. Its first row meets the
constant feature: M[0, V] counts what was written. The kernel is at least 1/2, so the normaliser is at least half that count; it is
kept there, because the sum over features loses 1 + z + z^2/2 to rounding where |q| |k| is in the thousands.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memseq.ops.linear_attention import decay_chunkwise

__all__ = ["feature_count", "taylor_chunkwise", "taylor_features", "taylor_recurrent", "taylor_write"]

Keys = Float[Tensor, "B H T d"]
Values = Float[Tensor, "B H T V"]
Matrix = Float[Tensor, "B H F V1"]  # V1 = V + 1: the last column is the normaliser


def feature_count(size: int) -> int:
    """Features of vectors of `size` numbers.

    >>> feature_count(16)
    153
    """
    return 1 + size + size * (size + 1) // 2


def taylor_features(x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows F"]:
    """phi(x); the products are chosen by two small matrices of zeros and ones, whose gradients are products again."""
    first, second = _pairs(x.shape[-1], x.dtype, x.device)
    x = x * x.shape[-1] ** -0.25
    return torch.cat([torch.ones_like(x[..., :1]), x, (x @ first) * (x @ second)], dim=-1)


def _pairs(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    i, j = torch.triu_indices(size, size, device=device)
    unit = torch.eye(size, dtype=dtype, device=device)
    weight = torch.ones(len(i), dtype=dtype, device=device).masked_fill(i == j, 2**-0.5)
    return unit[:, i] * weight, unit[:, j]


def taylor_recurrent(q: Keys, k: Keys, v: Values, M: Matrix) -> tuple[Values, Matrix]:
    """The definition, token by token."""
    q, k, v = (z.to(M.dtype) for z in (q, k, v))
    y = []
    for t in range(q.shape[2]):
        ones = torch.ones_like(v[:, :, t, :1])
        M = M + taylor_features(k[:, :, t])[..., None] * torch.cat([v[:, :, t], ones], dim=-1)[..., None, :]
        o = (taylor_features(q[:, :, t])[..., None, :] @ M)[..., 0, :]
        y.append(o[..., :-1] / torch.maximum(o[..., -1:], M[..., 0, -1:] / 2))
    return torch.stack(y, dim=2), M


def taylor_chunkwise(q: Keys, k: Keys, v: Values, M: Matrix, *, chunk_size: int) -> tuple[Values, Matrix]:
    """Equal to `taylor_recurrent`: matrix products within a chunk, recurrence between chunks."""
    q, k, v = (z.to(M.dtype) for z in (q, k, v))
    T = q.shape[2]
    still = q.new_zeros(()).expand(q.shape[:3])  # nothing decays
    written = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
    o, after = decay_chunkwise(taylor_features(q), taylor_features(k), written, still, M, chunk_size=chunk_size)
    count = M[:, :, :1, -1:] + torch.arange(1, T + 1, dtype=M.dtype, device=M.device)[:, None]
    return o[..., :-1] / torch.maximum(o[..., -1:], count / 2), after


def taylor_write(k: Keys, v: Values, M: Matrix, keep: Bool[Tensor, "B T"] | None = None, *, chunk_size: int) -> Matrix:
    """M with the tokens written that `keep` names (all where it is None), and nothing read: one sum, in any order.

    A token that is not kept has its features zeroed, the constant one too: phi(0) is not zero.
    """
    for at in range(0, k.shape[2], chunk_size):
        features, values = (z[:, :, at : at + chunk_size].to(M.dtype) for z in (k, v))
        features = taylor_features(features)
        if keep is not None:
            features = features * keep[:, None, at : at + chunk_size, None].to(M.dtype)
        M = M + features.mT @ torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)
    return M

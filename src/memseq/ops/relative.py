"""Relative positions of Transformer-XL: sinusoids of distances, and the shift that puts them where queries meet keys.

Source: Transformer-XL (Dai et al., arXiv:1901.02860), §3.3 and appendix B.

    R_d = [sin(d w), cos(d w)],  w_k = 10000^(-2k / D)          the embedding of a distance d >= 0
    A^rel_ij = (q_i + v) . W_R R_(i-j)                          needs T x S products, of which only R distances differ

So the products are made once a distance, with columns in the order R-1, ..., 1, 0, and shifted into place row by row.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["relative_shift", "relative_shift_definition", "sinusoids"]


def sinusoids(distances: Int[Tensor, "*R"], d_model: int) -> Float[Tensor, "*R D"]:
    """Embeddings of distances, in float64: far angles lose their digits in anything less."""
    frequencies = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64, device=distances.device) / d_model)
    angles = distances[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def relative_shift_definition(scores: Float[Tensor, "B H T R"], keys: int) -> Float[Tensor, "B H T S"]:
    """The definition, by gathering: column r of `scores` belongs to distance R-1-r, the queries are the last T of `keys` tokens.

    Zero where the distance of a query and a key is not among 0, ..., R-1; the caller masks what is not to be seen.
    """
    B, H, T, R = scores.shape
    distance = torch.arange(keys - T, keys, device=scores.device)[:, None] - torch.arange(keys, device=scores.device)
    known = (distance >= 0) & (distance < R)
    columns = (R - 1 - distance).clamp(0, R - 1).expand(B, H, T, keys)
    return scores.gather(3, columns) * known


def relative_shift(scores: Float[Tensor, "B H T R"], keys: int) -> Float[Tensor, "B H T S"]:
    """Equal to `relative_shift_definition`, by reading padded rows at a stride one shorter than they are."""
    B, H, T, R = scores.shape
    if T == 1 and R == keys:
        return scores
    rows = F.pad(scores, (0, T)).flatten(2)[..., :-T].view(B, H, T, R + T - 1)  # row i moved to the right by i
    left = keys - T + 1 - R  # keys farther away than any known distance
    return F.pad(rows, (left, 0)) if left > 0 else rows[..., -left:]

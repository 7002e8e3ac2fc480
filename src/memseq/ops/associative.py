"""The associative matrix of ARMT: features without a softmax, a normalised read, and a delta write of several keys at once.

Source: Associative Recurrent Memory Transformer (Rodkin et al., arXiv:2407.04841); features are DPFP (Schlag et al., arXiv:2102.11174).

    u = [relu(a); relu(-a)],   phi(a) = [u * roll(u, 1); ...; u * roll(u, nu)]           2 nu d_m features
    read    (q^T A) / (q^T z + eps)                                                      of all tokens of a segment
    write   v'_i = (k_i^T A) / (k_i^T z + eps)                                           what is stored under k_i
            g_i  = clip(1 - z^T k_i / (|k_i|^2 + eps), 0, 1), without gradient           how new k_i is
            A   += sum_i b_i k_i (v_i - v'_i)^T,   z += sum_i g_i k_i                    all from the old A and z

With A = 0 and z = 0 a read is 0, what is stored is 0 and a key is new: the first segment is no special case.
Keys and queries are features; A is [B, F, D], z is [B, F], both float32 at least. Where q^T z is small the gradient of a read is as large
as the product of its inputs over (q^T z + eps): eps = 1e-5 is published, one of about the size of q^T z keeps gradients small and lets a
query that meets nothing read nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["EPSILON", "dpfp", "read", "write", "write_definition"]

EPSILON = 1e-5

Features = Float[Tensor, "B N F"]
Values = Float[Tensor, "B N D"]
Betas = Float[Tensor, "B N"]
Matrix = Float[Tensor, "B F D"]
Norm = Float[Tensor, "B F"]


def dpfp(a: Float[Tensor, "*rest M"], nu: int) -> Float[Tensor, "*rest F"]:
    """Deterministic parameter-free projection: 2 nu M non-negative features, of which few are above zero."""
    u = torch.cat([a.relu(), (-a).relu()], dim=-1)
    return torch.cat([u * u.roll(j, dims=-1) for j in range(1, nu + 1)], dim=-1)


def read(q: Features, A: Matrix, z: Norm, epsilon: float = EPSILON) -> Values:
    """What is stored under each query."""
    return (q @ A) / ((q @ z[..., None]) + epsilon)


def write_definition(k: Features, v: Values, beta: Betas, A: Matrix, z: Norm, epsilon: float = EPSILON) -> tuple[Matrix, Norm]:
    """The equations, one key after the other: the form the fast one is tested against."""
    A_new, z_new = A, z
    for i in range(k.shape[1]):
        key, value = k[:, i], v[:, i]
        stored = torch.einsum("b f, b f d -> b d", key, A) / (torch.einsum("b f, b f -> b", key, z) + epsilon)[:, None]
        known = torch.einsum("b f, b f -> b", z, key) / (key.square().sum(-1) + epsilon)
        new = (1 - known).clamp(0, 1).detach()
        A_new = A_new + beta[:, i, None, None] * key[:, :, None] * (value - stored)[:, None, :]
        z_new = z_new + new[:, None] * key
    return A_new, z_new


def write(k: Features, v: Values, beta: Betas, A: Matrix, z: Norm, epsilon: float = EPSILON) -> tuple[Matrix, Norm]:
    """Equal to `write_definition`: all keys in one product."""
    met = k @ z[..., None]  # z^T k_i
    stored = (k @ A) / (met + epsilon)
    new = (1 - met[..., 0] / (k.square().sum(-1) + epsilon)).clamp(0, 1).detach()
    return A + k.mT @ (beta[..., None] * (v - stored)), z + torch.einsum("b n, b n f -> b f", new, k)

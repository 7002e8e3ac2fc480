"""Newton-Schulz: a matrix with the same singular vectors and singular values near one, by products alone.

Source: Muon (Jordan et al., 2024), as ATLAS (Behrouz et al., arXiv:2505.23735) applies it to the momentum of a memory.

    X = S / sqrt(|S|_F^2 + eps^2);   k times:  A = X X^T,   X <- a X + (b A + c A^2) X,     (a, b, c) = (3.4445, -4.7750, 2.0315)

With k = 5 every singular value of at least 0.003 |S|_F comes to lie in [0.68, 1.21], not at 1; k = 0 leaves S as it is. A matrix of zeros
stays zero.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["newton_schulz"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def newton_schulz(S: Float[Tensor, "... I O"], steps: int = 5, eps: float = 1e-3) -> Float[Tensor, "... I O"]:
    """S with its singular values driven towards one in `steps` iterations; differentiable.

    A matrix far smaller than `eps` is taken for nothing: else what a stream's first token hardly says would be shouted, and its
    gradient multiplied by the inverse of its size.
    """
    if steps == 0:
        return S
    a, b, c = COEFFICIENTS
    tall = S.shape[-2] > S.shape[-1]
    X = S.mT if tall else S
    # not norm(): its slope at zero, where a stream begins, would be no number
    X = X * torch.rsqrt(X.square().sum((-2, -1), keepdim=True) + eps**2)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if tall else X

"""Newton-Schulz: a matrix with the same singular vectors and singular values near one, by products alone.

Source: Muon (Jordan et al., 2024), as ATLAS (Behrouz et al., arXiv:2505.23735) applies it to the momentum of a memory.

    X = S / sqrt(|S|_F^2 + eps^2);   k times:  A = X X^T,   X <- a X + (b A + c A^2) X,     (a, b, c) = (3.4445, -4.7750, 2.0315)

With k = 5 every singular value of at least 0.003 |S|_F comes to lie in [0.68, 1.21], not at 1; k = 0 leaves S as it is. A matrix of zeros
stays zero. All that multiplies S is a polynomial of its Gram matrix, on whichever side is the shorter:

    NS(S) = S root(S^T S) = root(S S^T) S,     root(A) = t^(-1/2) r(A / t),   t = tr A + eps^2
    r = p_0 p_1 ... p_(k-1),   p_i = a + b x_i + c x_i^2,   x_(i+1) = x_i p_i^2,   x_0 = x

`Root` applies r to the eigenvalues of A, one decomposition in the place of 4 k products forward and 10 k back: with A = U diag(l) U^T,

    d root = U (D * (U^T dA U)) U^T,     D_ij = (f(l_i) - f(l_j)) / (l_i - l_j)

where D follows from those of a sum and a product, (u w)[i, j] = u_i w[i, j] + u[i, j] w_j, with no difference and no division: eigenvalues
may be equal. Squaring costs digits: of a singular value near 0.003 |S|_F the third is lost in float32.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Root", "newton_schulz"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-2


def newton_schulz(S: Float[Tensor, "... I O"], steps: int = 5, eps: float = EPS) -> Float[Tensor, "... I O"]:
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


class Root(NamedTuple):
    """root(A) of `steps` iterations, as eigenvectors and what becomes of the eigenvalues."""

    vectors: Float[Tensor, "... N N"]
    x: Float[Tensor, "... N"]  # eigenvalues, of sum one or less
    said: Float[Tensor, "... N"]  # r(x)
    total: Float[Tensor, "... 1"]  # t

    @classmethod
    def of(cls, A: Float[Tensor, "... N N"], steps: int, eps: float = EPS) -> "Root":
        """Without a gradient; A has no negative eigenvalue but for rounding."""
        total = A.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) + eps**2
        x, vectors = _eigen(A / total[..., None])
        *_, (_, _, said) = _iterations(x, steps)
        return cls(vectors, x, said, total)

    def matrix(self) -> Float[Tensor, "... N N"]:
        return (self.vectors * (self.said * self.total.rsqrt())[..., None, :]) @ self.vectors.mT

    def back(self, d: Float[Tensor, "... N N"], steps: int) -> Float[Tensor, "... N N"]:
        """The gradient in A, from that in the matrix."""
        U, within = self.vectors, self.vectors.mT @ d @ self.vectors
        within = within + within.mT
        differences = _differences(self.x, steps)
        along = within.diagonal(dim1=-2, dim2=-1)  # twice what meets each eigenvalue
        slope = differences.diagonal(dim1=-2, dim2=-1)
        d_total = -0.5 * (along * (0.5 * self.said + self.x * slope)).sum(-1, keepdim=True)  # of t^(-1/2) r(l / t), times t^(3/2)
        within.mul_(differences).mul_(0.5).diagonal(dim1=-2, dim2=-1).add_(d_total)
        return (U * self.total.pow(-1.5)[..., None]) @ (within @ U.mT)


def _eigen(A: Float[Tensor, "... N N"]) -> tuple[Float[Tensor, "... N"], Float[Tensor, "... N N"]]:
    """Eigenvalues and eigenvectors of matrices of at most trace one; of those that are not finite, no numbers."""
    A = A.masked_fill(A.abs() < torch.finfo(A.dtype).tiny ** 0.75, 0)  # LAPACK may not converge on numbers that are hardly there
    try:
        return torch.linalg.eigh(A)
    except torch.linalg.LinAlgError:
        finite = A.isfinite().all(-1).all(-1)
        x, vectors = torch.linalg.eigh(A.masked_fill(~finite[..., None, None], 0).double())
        return x.to(A.dtype).masked_fill(~finite[..., None], torch.nan), vectors.to(A.dtype)


def _iterations(x: Tensor, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x_i, p_i and p_0 ... p_i."""
    a, b, c = COEFFICIENTS
    said = torch.ones_like(x)
    for _ in range(steps):
        p = a + x * (b + c * x)
        said = said * p
        yield x, p, said
        x = x * p * p


def _differences(x: Float[Tensor, "... N"], steps: int) -> Float[Tensor, "... N N"]:
    """r[i, j] = (r(x_i) - r(x_j)) / (x_i - x_j), its slope where they are equal."""
    _, b, c = COEFFICIENTS
    size = (*x.shape, x.shape[-1])
    of_x, of_r, before = x.new_ones(size), x.new_zeros(size), torch.ones_like(x)
    for x_i, p, said in _iterations(x, steps):
        of_p = (c * x_i[..., :, None] + (c * x_i + b)[..., None, :]).mul_(of_x)
        of_r.mul_(p[..., :, None]).addcmul_(of_p, before[..., None, :])
        of_p.mul_(p[..., :, None] + p[..., None, :]).mul_(x_i[..., :, None])  # x_i p^2[i, j]
        of_x.mul_(p.square()[..., None, :]).add_(of_p)
        before = said
    return of_r

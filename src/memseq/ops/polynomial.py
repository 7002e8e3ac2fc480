"""Polynomial features: phi(q) . phi(k) is a polynomial of q . k.

Source: ATLAS (Behrouz et al., arXiv:2505.23735), section on feature maps.

    phi(x) = [ sqrt(a_i m_b) x^b ] over all monomials x^b of degree i = |b| <= p,   m_b = i! / (b_1! ... b_d!)
    phi(q) . phi(k) = sum_i a_i (q . k)^i

Every monomial is one feature, C(d + p, p) of them: 153 for d = 16, p = 2, where an outer product has 273.
"""

import math
from functools import cache
from itertools import combinations_with_replacement

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["monomials", "polynomial_features"]


@cache
def monomials(size: int, degree: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """The monomials of exactly `degree` in `size` variables, as the places of their factors, and sqrt(m_b)."""
    places = list(combinations_with_replacement(range(size), degree))
    counts = [math.prod(math.factorial(place.count(i)) for i in set(place)) for place in places]
    return places, [math.sqrt(math.factorial(degree) / count) for count in counts]


def polynomial_features(x: Float[Tensor, "*rows d"], coefficients: Float[Tensor, "degrees"]) -> Float[Tensor, "*rows F"]:
    """phi(x) for `coefficients` a_0, ..., a_p, at least 0.

    Factors are chosen by matrices of zeros and ones, whose gradients are products again.
    """
    unit = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    features = []
    for degree, a in enumerate(coefficients.unbind()):
        places, roots = monomials(x.shape[-1], degree)
        product = (a.sqrt() * x.new_tensor(roots)).expand(*x.shape[:-1], len(roots))
        for column in zip(*places, strict=True):
            product = product * (x @ unit[:, list(column)])
        features.append(product)
    return torch.cat(features, dim=-1)

"""Fields on the sphere: values at the points of a quadrature in place of components.

A product of two fields, point by point, is their Gaunt product: all couplings of their components at once that the parities allow. With a
quadrature that is exact for the degree of the product, its components turn as exactly as those of the factors (Luo, Chen and Krishnapriyan
2024, arXiv 2401.10216).
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.ops import irreps as ir


@lru_cache
def quadrature(degree: int) -> tuple[Float[Tensor, "Q 3"], Float[Tensor, "Q"]]:
    """Unit vectors and weights, which add up to one, whose sum is the mean over the sphere of every polynomial up to `degree` (Lebedev)."""
    from scipy.integrate import lebedev_rule

    for n in (*range(3, 33, 2), *range(35, 132, 6)):
        if n >= degree:
            points, weights = lebedev_rule(n)
            return torch.from_numpy(points.T.copy()), torch.from_numpy(weights / weights.sum())
    raise ValueError(f"degree {degree}: quadratures are known up to 131")


@lru_cache
def transforms(l_in: int, l_out: int, factors: int) -> tuple[Float[Tensor, "Q I"], Float[Tensor, "O Q"]]:
    """Matrices from components up to l_in to values at points, and from a product of so many such fields back to its components up to l_out."""
    points, weights = quadrature(factors * l_in + l_out)
    there = torch.cat(ir.spherical_harmonics(l_in, points), dim=1)
    back = torch.cat(ir.spherical_harmonics(l_out, points), dim=1)
    return there, (back * weights[:, None]).T.contiguous()

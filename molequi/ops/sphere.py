"""Fields on the sphere: values at the points of a quadrature instead of components.

The product of two fields at each point is their Gaunt product: all couplings of their components at once that
parities allow. If the quadrature is exact for the degree of the product, the product is exactly equivariant
(Luo, Chen and Krishnapriyan 2024, arXiv 2401.10216).
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.ops import irreps as ir


@lru_cache
def quadrature(degree: int) -> tuple[Float[Tensor, "Q 3"], Float[Tensor, "Q"]]:
    """Lebedev quadrature: a weighted sum that is the mean over the sphere for all polynomials up to a degree.

    Parameters
    ----------
    degree : int
        Highest degree of the polynomials, at most 131.

    Returns
    -------
    points : Tensor, shape (Q, 3)
        Unit vectors, float64.
    weights : Tensor, shape (Q,)
        Weights that add up to one.

    Raises
    ------
    ValueError
        If the degree is too high.

    Examples
    --------
    >>> points, weights = quadrature(2)
    >>> round(float(weights @ points[:, 0] ** 2), 12)  # the mean of x²
    0.333333333333
    """
    from scipy.integrate import lebedev_rule

    for n in (*range(3, 33, 2), *range(35, 132, 6)):
        if n >= degree:
            points, weights = lebedev_rule(n)
            return torch.from_numpy(points.T.copy()), torch.from_numpy(weights / weights.sum())
    raise ValueError(f"degree {degree}: quadratures are known up to 131")


@lru_cache
def transforms(l_in: int, l_out: int, factors: int) -> tuple[Float[Tensor, "Q I"], Float[Tensor, "O Q"]]:
    """Matrices between components of fields and their values at the points of a quadrature.

    Parameters
    ----------
    l_in : int
        Highest degree of the fields.
    l_out : int
        Highest degree of the components of a product that are wanted.
    factors : int
        Number of fields in a product.

    Returns
    -------
    to_points : Tensor, shape (Q, (l_in + 1)²)
        From components of a field to its values.
    from_points : Tensor, shape ((l_out + 1)², Q)
        From values of a product to its components.
    """
    return fields(l_in, l_out, factors * l_in + l_out)


@lru_cache
def fields(l_in: int, l_out: int, degree: int) -> tuple[Float[Tensor, "Q I"], Float[Tensor, "O Q"]]:
    """Matrices between components of fields and their values at the points of a quadrature of any degree.

    Parameters
    ----------
    l_in, l_out : int
        Highest degree of the fields, and of the components that are wanted.
    degree : int
        Degree up to which the quadrature is exact, at most 131.

    Returns
    -------
    to_points : Tensor, shape (Q, (l_in + 1)²)
        From components of a field to its values.
    from_points : Tensor, shape ((l_out + 1)², Q)
        From values to components.
    """
    points, weights = quadrature(degree)
    there = torch.cat(ir.spherical_harmonics(l_in, points), dim=1)
    back = torch.cat(ir.spherical_harmonics(l_out, points), dim=1)
    return there, (back * weights[:, None]).T.contiguous()

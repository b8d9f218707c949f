"""Fields on the sphere: values at the points of a quadrature or a grid instead of components, and back.

The product of two fields at each point is their Gaunt product: all couplings of their components at once that
parities allow. If the quadrature is exact for the degree of the product, the product is exactly equivariant
(Luo, Chen and Krishnapriyan 2024, arXiv 2401.10216).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError
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


def _gauss_legendre(number: int) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Polar angles and weights of the quadrature with so many nodes; the weights add up to one.

    Newton's method in the angle. P_k - P_k-1 is summed instead of P_k, which loses no digits near the poles.
    """
    k = torch.arange(number, dtype=torch.float64)
    beta = torch.pi * (4 * k + 3) / (4 * number + 2)
    for _ in range(6):
        small = 2 * (beta / 2).sin().square()  # 1 - cos β
        value, step = torch.ones_like(beta), torch.zeros_like(beta)  # P_k, P_k - P_k-1
        for n in range(number):
            step = (n * step - (2 * n + 1) * small * value) / (n + 1)
            value = value + step
        slope = number * (step - small * value) / beta.sin()  # dP / dβ
        beta = beta - value / slope
    return beta, 1 / slope.square()


def legendre(l_max: int, cosine: Float[Tensor, "B"]) -> Float[Tensor, "M L B"]:
    """Parts of spherical harmonics that depend on the polar angle β alone, to any degree.

    With the polar axis y and α from z to x, as in e3nn, a harmonic is the product

        Y_lm = Q_l|m|(cos β) · (√2 sin |m|α for m < 0, 1 for m = 0, √2 cos mα for m > 0).

    Q follows from the recursions of normalized Legendre functions in m and l, which lose no digits with the
    degree (Holmes and Featherstone 2002, doi 10.1007/s00190-002-0216-2, eqs. 11 and 13).

    Parameters
    ----------
    l_max : int
        Highest degree.
    cosine : Tensor, shape (B,)
        cos β, float64.

    Returns
    -------
    Tensor, shape (l_max + 1, l_max + 1, B)
        Q by m, then l; zero for l < m.

    Examples
    --------
    >>> legendre(1, torch.tensor([1.0], dtype=torch.float64))[0, :, 0].tolist()  # Y_00 and Y_10 at the pole
    [1.0, 1.7320508075688772]
    """
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=0).sqrt()
    q = cosine.new_zeros(l_max + 1, l_max + 1, len(cosine))
    q[0, 0] = 1.0
    for m in range(1, l_max + 1):
        q[m, m] = sine * q[m - 1, m - 1] * math.sqrt((2 * m + 1) / (2 * m))
    for l in range(1, l_max + 1):
        n = torch.arange(l, dtype=cosine.dtype)[:, None]  # all m < l
        a = ((2 * l - 1) * (2 * l + 1) / ((l - n) * (l + n))).sqrt()
        q[:l, l] = a * cosine * q[:l, l - 1]
        if l > 1:
            n = n[:-1]
            b = ((2 * l + 1) * (l + n - 1) * (l - n - 1) / ((l - n) * (l + n) * (2 * l - 3))).sqrt()
            q[: l - 1, l] -= b * q[: l - 1, l - 2]
    return q


class SphereGrid:
    """Values of functions on the sphere at the points of a grid, from their components and back, to any
    degree.

    A function of degree l_max is f = Σ_lm c_lm Y_lm, with the harmonics of `ops.irreps.spherical_harmonics`;
    its components stand one degree after another: (…, (l_max + 1)²). The grid has B polar angles times A
    equally spaced angles about the polar axis y, and a transform costs O(l_max³). Rotating f multiplies c_l
    by the Wigner matrix of l.

    Parameters
    ----------
    l_max : int
        Highest degree of the components, at least 0.
    degree : int, optional
        Highest degree of the functions on the grid whose components up to `l_max` are exact, at least
        `l_max`. None: `l_max`. The product of two functions of degree l_max has the degree 2 l_max; what a
        nonlinear function has above `degree` is aliased, which breaks equivariance.
    kind : {"gauss-legendre", "driscoll-healy"}
        Polar angles: nodes of the Gauss-Legendre quadrature, or twice as many equally spaced ones (Driscoll
        and Healy 1994, doi 10.1006/aama.1994.1008).

    Attributes
    ----------
    points : Tensor, shape (B, A, 3)
        Unit vectors, float64.
    weights : Tensor, shape (B, A)
        Weights that add up to one: their sum with a function is its mean over the sphere.

    Raises
    ------
    ConfigError
        For a degree or kind that there is not.

    Examples
    --------
    >>> grid = SphereGrid(2)
    >>> height = grid.points[..., 1]  # the function y
    >>> round(float(grid.components(height)[2]), 6)  # y = Y_1,0 / √3
    0.57735
    """

    def __init__(self, l_max: int, *, degree: int | None = None, kind: str = "gauss-legendre") -> None:
        degree = l_max if degree is None else degree
        whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (l_max, degree))
        if not whole or not 0 <= l_max <= degree:
            raise ConfigError(
                f"SphereGrid: found l_max={l_max!r}, degree={degree!r}; wanted whole numbers with "
                "0 <= l_max <= degree"
            )
        exact = degree + l_max  # of the product with Y_l_max
        if kind == "gauss-legendre":
            beta, polar = _gauss_legendre(exact // 2 + 1)
            around = exact + 1
        elif kind == "driscoll-healy":
            band = exact // 2 + 1
            beta = torch.pi * (2 * torch.arange(2 * band, dtype=torch.float64) + 1) / (4 * band)
            odd = 2 * torch.arange(band, dtype=torch.float64) + 1
            around = 2 * band
            polar = beta.sin() * ((odd * beta[:, None]).sin() / odd).sum(1) / band
        else:
            raise ConfigError(f"SphereGrid: kind={kind!r}; wanted 'gauss-legendre' or 'driscoll-healy'")
        self.l_max, self.degree, self.kind = l_max, degree, kind
        alpha = 2 * torch.pi * torch.arange(around, dtype=torch.float64) / around
        sine, cosine = beta.sin(), beta.cos()
        self.points = torch.stack(
            [
                sine[:, None] * alpha.sin(),
                cosine[:, None].expand(-1, around),
                sine[:, None] * alpha.cos(),
            ],
            dim=2,
        )
        self.weights = (polar[:, None] / around).expand(-1, around)
        order = torch.arange(-l_max, l_max + 1)
        self._polar = legendre(l_max, cosine)[order.abs()]  # (2 l_max + 1, l_max + 1, B)
        angle = order[:, None] * alpha
        wave = torch.where(order[:, None] < 0, -angle.sin(), angle.cos()) * math.sqrt(2)
        self._around = torch.where(order[:, None] == 0, torch.ones_like(wave), wave)  # (2 l_max + 1, A)
        self._weight = polar / around
        l = torch.arange(l_max + 1).repeat_interleave(2 * torch.arange(l_max + 1) + 1)
        m = torch.arange((l_max + 1) ** 2) - l * (l + 1)
        self._place = (m + l_max) * (l_max + 1) + l  # of a component in the table (order, degree)

    def __repr__(self) -> str:
        b, a = self.weights.shape
        return f"SphereGrid(l_max={self.l_max}, degree={self.degree}, {self.kind}, {b} × {a} points)"

    def values(self, components: Float[Tensor, "... M"]) -> Float[Tensor, "... B A"]:
        """Values at the points of the grid.

        Parameters
        ----------
        components : Tensor, shape (…, (l_max + 1)²)
            Components c of functions.

        Raises
        ------
        ConfigError
            If the last axis has another length, or the numbers are no floating-point numbers.
        """
        _check_axes("values", components, (self.l_max + 1) ** 2)
        size = (self.l_max + 1) * (2 * self.l_max + 1)
        table = components.new_zeros(*components.shape[:-1], size)
        table = table.index_copy(-1, self._place.to(table.device), components)
        table = table.unflatten(-1, (2 * self.l_max + 1, self.l_max + 1))
        polar = torch.einsum("...ml,mlb->...mb", table, self._polar.to(table))
        return torch.einsum("...mb,ma->...ba", polar, self._around.to(table))

    def components(self, values: Float[Tensor, "... B A"]) -> Float[Tensor, "... M"]:
        """Components up to `l_max`, the means of f · Y_lm over the sphere.

        Parameters
        ----------
        values : Tensor, shape (…, B, A)
            Values at the points of the grid.

        Raises
        ------
        ConfigError
            If the last axes have other lengths, or the numbers are no floating-point numbers.
        """
        _check_axes("components", values, *self.weights.shape)
        around = torch.einsum("...ba,ma->...mb", values, self._around.to(values))
        weighted = self._polar * self._weight
        table = torch.einsum("...mb,mlb->...ml", around, weighted.to(values))
        return table.flatten(-2).index_select(-1, self._place.to(values.device))


def _check_axes(method: str, x: Tensor, *wanted: int) -> None:
    """Check the last axes and the type of an argument of `SphereGrid`."""
    shape = ", ".join(map(str, wanted))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
    elif tuple(x.shape[-len(wanted) :]) != wanted:
        found = f"shape {tuple(x.shape)}"
    else:
        return
    raise ConfigError(f"SphereGrid.{method}: found {found}; wanted a Tensor of floats of shape (…, {shape})")

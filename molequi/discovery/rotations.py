"""Exact quadrature over rotations, and the irreducible representations of rotations."""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import ConfigError
from molequi.ops import irreps as ir
from molequi.ops.sphere import quadrature

MAX_DEGREE = 130  # highest degree for which quadratures of this degree and the next one exist


@lru_cache
def rotation_quadrature(dim: int, degree: int) -> tuple[Float[Tensor, "Q D D"], Float[Tensor, "Q"]]:
    """Rotations and positive weights that integrate polynomials of matrix elements up to `degree` exactly.

    In the plane the angles are equidistant. In space each point of a quadrature of the sphere (Lebedev) is
    combined with equidistant rotations about it. Their sum reduces D^l to spherical harmonics of degree l of
    the point.

    Parameters
    ----------
    dim : int
        2 or 3.
    degree : int
        Highest degree of the polynomials.

    Returns
    -------
    rotations : Tensor, shape (Q, D, D)
        Proper rotations.
    weights : Tensor, shape (Q,)
        They add up to one.

    Raises
    ------
    ConfigError
        For other dimensions.
    """
    angles = 2 * math.pi * torch.arange(degree + 1, dtype=torch.float64) / (degree + 1)
    if dim == 2:
        weights = torch.full((degree + 1,), 1 / (degree + 1), dtype=torch.float64)
        return _about_z(angles)[:, :2, :2], weights
    if dim != 3:
        raise ConfigError(
            f"quadrature over rotations exists in two and three dimensions; the structures have {dim}"
        )
    # With a negative weight the mean of a square could be negative.
    points, weights = next(
        rule for rule in map(quadrature, range(degree, degree + 8)) if bool((rule[1] > 0).all())
    )
    cosine = points[:, 2].clamp(-1, 1)
    tilt = torch.zeros(len(points), 3, 3, dtype=torch.float64)
    tilt[:, 0, 0] = tilt[:, 2, 2] = cosine
    tilt[:, 0, 2] = (1 - cosine.square()).sqrt()
    tilt[:, 2, 0], tilt[:, 1, 1] = -tilt[:, 0, 2], 1.0
    frames = _about_z(torch.atan2(points[:, 1], points[:, 0])) @ tilt
    rotations = (frames[:, None] @ _about_z(angles)[None]).flatten(0, 1)
    return rotations, weights.repeat_interleave(degree + 1) / (degree + 1)


def _about_z(angle: Float[Tensor, "Q"]) -> Float[Tensor, "Q 3 3"]:
    """Rotations about z."""
    out = torch.zeros(len(angle), 3, 3, dtype=torch.float64)
    out[:, 0, 0] = out[:, 1, 1] = angle.cos()
    out[:, 1, 0] = angle.sin()
    out[:, 0, 1], out[:, 2, 2] = -out[:, 1, 0], 1.0
    return out


def rotation_irreps(l_max: int, rotations: Float[Tensor, "Q D D"]) -> list[Float[Tensor, "Q m m"]]:
    """D^l of proper rotations for l = 0 … l_max; in the plane the rotation by l times the angle."""
    one = torch.ones(len(rotations), 1, 1, dtype=torch.float64)
    if rotations.shape[1] == 2:
        return [one, *[torch.linalg.matrix_power(rotations, l) for l in range(1, l_max + 1)]]
    found = [one, rotations]
    for l in range(2, l_max + 1):
        coupling = ir.clebsch_gordan(l - 1, 1, l) * math.sqrt(2 * l + 1)
        left = torch.einsum("ijk,qia->qajk", coupling, found[-1])
        left = torch.einsum("qajk,qjb->qabk", left, rotations)
        found.append(torch.einsum("qabk,abc->qkc", left, coupling))
    return found[: l_max + 1]


def inversion_signs(dim: int, parity: bool) -> list[int]:
    """Signs s of the group elements s R to sample: 1, and -1 for the inversion if `parity`."""
    if parity and dim != 3:
        raise ConfigError(
            f"parity=True with structures of {dim} dimensions: the inversion is a reflection in three "
            "dimensions "
            "only; leave it out"
        )
    return [1, -1] if parity else [1]


def check_degrees(l_max: int, quadrature_degree: int) -> None:
    """Raise ConfigError unless 0 ≤ 2 l_max ≤ quadrature_degree ≤ MAX_DEGREE."""
    if not 0 <= 2 * l_max <= quadrature_degree <= MAX_DEGREE:
        raise ConfigError(
            f"l_max={l_max} with quadrature_degree={quadrature_degree}: wanted a quadrature_degree up to "
            f"{MAX_DEGREE}, and l_max from 0 to half of it"
        )

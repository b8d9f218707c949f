"""Orbit spectrum.

How much of a function is invariant, transforms as a vector, and so on, by exact quadrature.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.discovery.functions import NO_CHANGE, StructureFunction, structure_function
from molequi.discovery.rotations import check_degrees, inversion_signs, rotation_irreps, rotation_quadrature
from molequi.errors import DataError
from molequi.graph import Graph
from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

RESOLVED = 0.01  # largest difference of two quadratures, as a share of the function


@dataclass(frozen=True, kw_only=True)
class OrbitSpectrum:
    """Shares of a function by degree, over the orbits of structures; ``print`` shows them.

    Attributes
    ----------
    name : str
        The function.
    shares : dict
        S_0, S_1, … by degree, or by degree and parity ("0e", "1o") if the inversion was sampled.
    remainder : float
        Share of higher degrees.
    quadrature_error : float
        Largest difference of the shares, and of the components, between two quadratures, for the structure
        with the largest contribution. It is round-off if the function is resolved.
    standard_deviation : dict
        Standard deviation of each share over the structures.
    deformation_change : float
        Relative change of the function under a deformation, which is no symmetry.
    n_structures, quadrature_degree, n_rotations : int
        Structures, degree of the quadrature, and elements on each orbit.
    """

    name: str
    shares: dict[str, float]
    remainder: float
    quadrature_error: float
    standard_deviation: dict[str, float]
    deformation_change: float
    n_structures: int
    quadrature_degree: int
    n_rotations: int

    @property
    def summary(self) -> str:
        """The result in words."""
        label, largest = max(self.shares.items(), key=lambda item: item[1])
        if self.quadrature_error > RESOLVED:
            return (
                f"not resolved: a quadrature of another degree than {self.quadrature_degree} differs by "
                f"{self.quadrature_error:.1e}; take a higher quadrature_degree"
            )
        if self.remainder > largest:
            l_max = max(int(name.rstrip("eo")) for name in self.shares)
            return f"mostly ({self.remainder:.3f}) of degrees above {l_max}"
        vector, pseudovector = "a vector, or components of one", "a pseudovector, or components of one"
        what = {
            "0": "invariant",
            "0e": "invariant",
            "0o": "a pseudoscalar",
            "1": vector,
            "1o": vector,
            "1e": pseudovector,
        }.get(label, f"of degree {label}")
        missing = max(1 - largest, self.quadrature_error)
        if missing <= 1e-10:
            return what
        if missing <= 0.05:
            return f"{what}, except for {missing:.1e}"
        return f"a mixture of degrees; the largest share, {largest:.3f}, is of degree {label}"

    @property
    def title(self) -> str:
        """The function and the settings."""
        return (
            f"orbit spectrum of {self.name}; {self.n_structures} structures, {self.n_rotations} rotations "
            "each "
            f"(quadrature degree {self.quadrature_degree}), quadrature error {self.quadrature_error:.1e}; "
            f"change under a deformation {self.deformation_change:.1e}"
        )

    def _rows(self) -> list[tuple[str, str, str]]:
        rows = [(k, _share(v), f"{self.standard_deviation[k]:.1e}") for k, v in self.shares.items()]
        return [*rows, ("higher", _share(self.remainder), "")]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._rows())

    __repr__ = __str__

    def to_json(self) -> str:
        """All fields and the summary as JSON."""
        return json.dumps({**asdict(self), "summary": self.summary}, indent=1, allow_nan=False)


_HEAD = ("degree", "share", "standard deviation")


def _share(value: float) -> str:
    return f"{value:.6f}" if abs(value) >= 1e-6 or value == 0 else f"{value:.1e}"


def orbit_spectrum(
    model: Any,
    structures: Any,
    output: str | None = None,
    *,
    l_max: int = 4,
    quadrature_degree: int = 16,
    parity: bool = False,
    centered: bool = True,
    limit: int = 8,
) -> OrbitSpectrum:
    """Decompose a function h of structures into irreps of the rotations.

    ``S_λ = (2λ + 1) |∫ D^λ(R) ⊗ h(R x) dR|² / ∫ |h(R x)|² dR``, summed over components and structures.

    An invariant has the shares (1, 0, …), a vector (0, 1, 0, …). All shares add up to one (theorem of Peter
    and Weyl). In the plane the degree is ``|λ|``, the number of periods in a full turn. Rotations are about
    the origin, which matters for functions that are not invariant to translations.

    Parameters
    ----------
    model, structures, output, limit
        As in `structure_function`.
    l_max : int
        Highest degree with a share of its own.
    quadrature_degree : int
        The quadrature is exact for functions of degree up to half of it. At least 2 l_max, at most 130.
    parity : bool
        Whether to split each share by parity under the inversion, at twice the cost.
    centered : bool
        Whether to subtract the mean over all structures and their orbits. Otherwise the total energy of the
        atoms dominates all other contributions. The invariant share then measures differences between
        structures.

    Returns
    -------
    OrbitSpectrum
        ``print`` shows the shares.

    Raises
    ------
    ConfigError
        For unknown outputs and degrees out of range.
    DataError
        For a function that is constant.

    Examples
    --------
    >>> import torch, molequi as mq
    >>> graphs = [mq.Graph.single(torch.randn(5, 3, dtype=torch.float64)) for _ in range(3)]
    >>> spectrum = orbit_spectrum(lambda graph: graph.pos[:, 0], graphs, quadrature_degree=8)
    >>> round(spectrum.shares["1"], 9), spectrum.summary
    (1.0, 'a vector, or components of one')
    """
    f = structure_function(model, structures, output, limit=limit)
    check_degrees(l_max, quadrature_degree)
    signs = inversion_signs(f.dim, parity)
    rotations, weights = rotation_quadrature(f.dim, quadrature_degree)
    control = f.deformation_change()
    labels = _labels(l_max, parity)
    orbits = [_components(f, graph, signs, rotations, weights, labels) for graph in f.graphs]
    mean = torch.cat([parts[0] for parts, _ in orbits]).mean(0) if centered else torch.zeros(())
    for parts, _ in orbits:
        parts[0] -= mean
    # Of each structure: the square of each component, and of the whole.
    powers = torch.stack([_powers(parts, varying, len(signs)) for parts, varying in orbits])
    total = powers.sum(0)
    if centered and not float(total[-1]) > NO_CHANGE**2 * float(mean.square().sum()):
        raise DataError(
            f"{f.name}: the same for all {len(f.graphs)} structures and all their rotations, so that an "
            "invariant "
            "cannot be distinguished from a constant; give structures that differ, or centered=False"
        )
    shares = (total[:-1] / total[-1]).tolist()
    each = powers[:, :-1] / powers[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    largest = int(powers[:, -1].argmax())
    error = _quadrature_error(
        f, f.graphs[largest], signs, quadrature_degree, labels, mean, (orbits[largest][0], powers[largest])
    )
    return OrbitSpectrum(
        name=f.name,
        shares=dict(zip(labels, shares)),
        remainder=1 - sum(shares),
        quadrature_error=error,
        standard_deviation=dict(zip(labels, each.std(0, correction=0).tolist())),
        deformation_change=control,
        n_structures=len(f.graphs),
        quadrature_degree=quadrature_degree,
        n_rotations=len(signs) * len(rotations),
    )


def _labels(l_max: int, parity: bool) -> list[str]:
    if not parity:
        return [str(l) for l in range(l_max + 1)]
    return [ir.name(l, s) for l in range(l_max + 1) for s in ((-1) ** l, -((-1) ** l))]


def _components(
    f: StructureFunction,
    graph: Graph,
    signs: Sequence[int],
    rotations: Float[Tensor, "Q D D"],
    weights: Float[Tensor, "Q"],
    labels: Sequence[str],
) -> tuple[list[Float[Tensor, "..."]], float]:
    """√(2λ + 1) ∫ D^λ(R) ⊗ h(R x) dR by label, and the mean square of h about its mean over the orbit."""
    orbit = [f.on_orbit(graph, s * rotations) for s in signs]  # (Q, rows, width)
    means = [torch.einsum("q,qnw->nw", weights, v) for v in orbit]
    # Without the mean, because a large constant would cost digits.
    varying = [(v - m).flatten(1) for v, m in zip(orbit, means)]
    matrices = rotation_irreps(max(int(label.rstrip("eo")) for label in labels), rotations)
    parts = []
    for label in labels:
        l, p = ir.parse(label) if len(signs) > 1 else (int(label), 1)
        # In the plane cos λφ and sin λφ appear twice in D^λ.
        factor = matrices[l].shape[1] if f.dim == 3 else 1
        parts.append(
            _even_or_odd(means, p)
            if l == 0
            else math.sqrt(factor) * (weights[:, None] * matrices[l].flatten(1)).T @ _even_or_odd(varying, p)
        )
    return parts, sum(float((weights[:, None] * v.square()).sum()) for v in varying) / len(varying)


def _even_or_odd(values: Sequence[Tensor], parity: int) -> Tensor:
    """The part of this parity, of values without and with inversion."""
    if len(values) == 1:
        return values[0]
    return (values[0] + values[1]) / 2 if parity == 1 else (values[0] - values[1]) / 2


def _powers(parts: Sequence[Tensor], varying: float, n_constant: int) -> Float[Tensor, "labels+1"]:
    """Squares of the components and of the whole; the first `n_constant` are constant on the orbit."""
    powers = torch.stack([part.square().sum() for part in parts])
    return torch.cat([powers, powers[:n_constant].sum()[None] + varying])


def _quadrature_error(
    f: StructureFunction,
    graph: Graph,
    signs: Sequence[int],
    quadrature_degree: int,
    labels: Sequence[str],
    mean: Tensor,
    reference: tuple[Sequence[Tensor], Float[Tensor, "labels+1"]],
) -> float:
    """Largest difference to another quadrature, of the shares and of the components.

    Each quadrature mistakes some higher degrees for lower ones, and these are not the same for both. The
    components may differ even if their squares do not.
    """
    components, powers = reference
    tilt = random_orthogonal(f.dim, proper=True, generator=torch.Generator().manual_seed(0))
    rotations, weights = rotation_quadrature(f.dim, quadrature_degree + 1)
    parts, varying = _components(f, graph, signs, tilt @ rotations, weights, labels)
    parts[0] -= mean
    difference = _powers([a - b for a, b in zip(components, parts)], 0.0, len(signs))
    other = _powers(parts, varying, len(signs))
    change = powers[:-1] / powers[-1] - other[:-1] / other[-1]
    relative = 2 * difference[:-1] / (powers[-1] + other[-1])
    return float(torch.cat([change.abs(), change.sum().abs()[None], relative]).max())

"""Hidden action: whether features that declare no representation transform by one, and by which."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.discovery.functions import StructureFunction, structure_function
from molequi.discovery.rotations import check_degrees, inversion_signs, rotation_irreps, rotation_quadrature
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.ops import irreps as ir
from molequi.symmetry import random_orthogonal
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

# 1 - R² on test structures of an exact action, and of an approximate one.
EXACT, APPROXIMATE = 1e-8, 0.1
HOMOMORPHISM = 1e-6  # largest relative defect |M(R₁R₂) − M(R₁)M(R₂)| of an exact action
INTEGER = 0.05  # largest deviation of a multiplicity from a whole number
INDEPENDENT = 1e-4  # smallest singular value of the features of the fit, relative to the largest


@dataclass(frozen=True, kw_only=True)
class HiddenAction:
    """The linear action that best describes how features transform, h(R x) ≈ M(R) h(x); ``print`` shows it.

    Attributes
    ----------
    name : str
        The features.
    n_features, rank : int
        Number of features, and of dimensions in which they vary.
    r2 : float
        R² on test structures, 1 for a perfect action; all dimensions have equal weight.
    r2_train : float
        R² on the structures of the fit.
    homomorphism_defect : float
        Largest ``|M(R₁R₂) − M(R₁)M(R₂)| / |M(R₁R₂)|``, each matrix fitted separately.
    multiplicities : dict
        Multiplicity of each irrep, from the characters.
    remainder : float
        Number of dimensions in none of these irreps.
    n_structures, n_rows, quadrature_degree : int
        Structures, rows (nodes) in the fit, and degree of the quadrature of characters.
    fit : callable
        Fits M in whitened coordinates for a batch of rotations.
    whitening, unwhitening : Tensor, shapes (rank, n_features) and (n_features, rank)
        Maps from features to whitened coordinates and back.
    """

    name: str
    n_features: int
    rank: int
    r2: float
    r2_train: float
    homomorphism_defect: float
    multiplicities: dict[str, float]
    remainder: float
    n_structures: int
    n_rows: int
    quadrature_degree: int
    fit: Callable[[Float[Tensor, "Q D D"]], Float[Tensor, "Q r r"]] = field(repr=False, compare=False)
    whitening: Float[Tensor, "r w"] = field(repr=False, compare=False)
    unwhitening: Float[Tensor, "w r"] = field(repr=False, compare=False)

    def matrix(self, rotation: Float[Tensor, "D D"]) -> Float[Tensor, "w w"]:
        """M(R) on the features, for an orthogonal matrix R; zero in directions without variance.

        Parameters
        ----------
        rotation : Tensor, shape (D, D)
            R.

        Returns
        -------
        Tensor, shape (n_features, n_features)
            M(R).
        """
        return self.unwhitening @ self.fit(rotation[None].double())[0] @ self.whitening

    @property
    def integral(self) -> bool:
        """Whether the multiplicities are whole numbers and account for all dimensions."""
        return abs(self.remainder) <= INTEGER and all(
            abs(n - round(n)) <= INTEGER and n > -INTEGER for n in self.multiplicities.values()
        )

    @property
    def exact(self) -> bool:
        """Whether the features transform by a representation, to round-off."""
        return self.r2 >= 1 - EXACT and self.homomorphism_defect <= HOMOMORPHISM and self.integral

    @property
    def irreps(self) -> str | None:
        """The representation as "4x0e+2x1o", or as "4x0+2x1" without parities.

        None if the fit is poor, if it is no homomorphism, or if multiplicities are not whole numbers.
        `commutant_distance` and `equivariant_projection` need parities, which ``parity=True`` finds.
        """
        poor = self.r2 < 1 - APPROXIMATE or self.homomorphism_defect > math.sqrt(APPROXIMATE)
        if poor or not self.integral:
            return None
        return "+".join(f"{round(n)}x{label}" for label, n in self.multiplicities.items() if round(n))

    @property
    def summary(self) -> str:
        """The result in words."""
        if self.exact:
            return f"an exact linear action: {self.irreps}"
        if self.irreps is not None:
            return (
                f"an approximate linear action: {self.irreps}; it leaves {1 - self.r2:.1e} of the variance "
                "on test "
                "structures unexplained"
            )
        if self.r2 < 1 - APPROXIMATE:
            return f"no linear action: it explains {max(self.r2, 0.0):.2f} of the variance on test structures"
        if self.homomorphism_defect > math.sqrt(APPROXIMATE):
            return (
                "no linear action: M(R₁R₂) differs from M(R₁)M(R₂), with a relative defect of "
                f"{self.homomorphism_defect:.1e}"
            )
        return "a linear map fits, but its characters are no sum of the irreps in use; take a larger l_max"

    @property
    def title(self) -> str:
        """The features and the quality of the fit."""
        return (
            f"hidden action on {self.name}: {self.rank} of {self.n_features} dimensions; {self.n_rows} rows "
            "of "
            f"{self.n_structures} structures; R² on test structures {self.r2:.9f}, on training structures "
            f"{self.r2_train:.9f}; homomorphism defect {self.homomorphism_defect:.1e}"
        )

    def _rows(self) -> list[tuple[str, str]]:
        return [
            *((k, f"{n:.6f}") for k, n in self.multiplicities.items()),
            ("other", f"{self.remainder:.6f}"),
        ]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._rows())

    __repr__ = __str__

    def to_json(self) -> str:
        """All numbers and the summary as JSON."""
        names = [n for n in self.__dataclass_fields__ if n not in ("fit", "whitening", "unwhitening")]
        return json.dumps(
            {
                **{n: table.json_ready(getattr(self, n)) for n in names},
                "irreps": self.irreps,
                "exact": self.exact,
                "summary": self.summary,
            },
            indent=1,
            allow_nan=False,
        )


_HEAD = ("irrep", "multiplicity")


def hidden_action(
    model: Any,
    structures: Any,
    output: str | None = None,
    *,
    l_max: int = 2,
    quadrature_degree: int | None = None,
    parity: bool = False,
    min_rms: float = 1e-6,
    n_pairs: int = 8,
    seed: int = 0,
    limit: int = 64,
) -> HiddenAction:
    """Find out whether features transform by a representation: least-squares fits of h(R x) ≈ M(R) h(x).

    Each structure is first rotated at random, because any map fits the frames of one orientation. The
    features at all nodes are whitened with their second moment over the orbits: then a representation is
    orthogonal, and small features count as much as large ones. Every third structure is used for the test.
    Multiplicities of irreps are the inner products of characters, n_λ = ∫ χ_λ(R) tr M(R) dR.

    Parameters
    ----------
    model, structures, output, limit
        As in `structure_function`. The structures of the fit need at least twice as many rows (nodes) as
        features.
    l_max : int
        Highest irrep in use.
    quadrature_degree : int, optional
        Degree of the quadrature of characters. The default 2 l_max + 2 is exact for actions of degree up to
        l_max + 2.
    parity : bool
        Whether to sample the inversion too, so that irreps have parities.
    min_rms : float
        Directions with a root mean square below this fraction of the largest one are left out.
    n_pairs : int
        Number of random pairs of rotations for the homomorphism defect.
    seed : int
        Seed of random rotations.

    Returns
    -------
    HiddenAction
        ``print`` shows the multiplicities and the quality of the fit.

    Raises
    ------
    ConfigError
        For unknown outputs and settings out of range.
    DataError
        For fewer than three structures, too few rows, and features that do not depend on the positions.

    Examples
    --------
    Two vectors and their lengths, mixed by a random matrix:

    >>> import torch, molequi as mq
    >>> graphs = [mq.Graph.single(torch.randn(9, 3, dtype=torch.float64)) for _ in range(6)]
    >>> mix = torch.randn(4, 4, dtype=torch.float64)
    >>> def features(graph):
    ...     return torch.cat([graph.pos, graph.pos.norm(dim=1, keepdim=True)], dim=1) @ mix
    >>> hidden_action(features, graphs, l_max=1).irreps
    '1x0+1x1'
    """
    f = structure_function(model, structures, output, limit=limit)
    quadrature_degree = 2 * l_max + 2 if quadrature_degree is None else quadrature_degree
    check_degrees(l_max, quadrature_degree)
    if n_pairs < 1 or not 0 < min_rms < 1:
        raise ConfigError(
            f"n_pairs={n_pairs}, min_rms={min_rms}: wanted at least one pair of rotations, and min_rms "
            "between 0 "
            "and 1"
        )
    signs = inversion_signs(f.dim, parity)
    if len(f.graphs) < 3:
        raise DataError(
            f"{len(f.graphs)} structures for a hidden action; wanted at least three, of which every third "
            "is used "
            "for the test"
        )
    f.deformation_change()
    rotations, weights = rotation_quadrature(f.dim, quadrature_degree)
    elements = torch.cat([s * rotations for s in signs])
    share = torch.cat([weights] * len(signs)) / len(signs)
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Tensor:
        proper = None if parity else True
        return torch.stack(
            [random_orthogonal(f.dim, proper=proper, generator=generator) for _ in range(count)]
        )

    oriented = list(zip(f.graphs, draw(len(f.graphs))))
    train, test = [p for k, p in enumerate(oriented) if k % 3 != 2], oriented[2::3]
    orbit = _values(f, train, elements)
    fit = _fit_action(f, train, orbit, share, min_rms)
    matrices = fit.maps_of_orbit(orbit)
    one, two = draw(n_pairs), draw(n_pairs)
    first, second, both = fit.maps(torch.cat([one, two, one @ two])).split(n_pairs)
    defect = ((both - first @ second).flatten(1).norm(dim=1) / both.flatten(1).norm(dim=1)).max()
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)
    multiplicities = _multiplicities(rotations, weights, trace, l_max, parity)
    rows, rank = fit.start.shape
    return HiddenAction(
        name=f.name,
        n_features=fit.whitening.shape[1],
        rank=rank,
        r2=1 - _unexplained(share, fit.start_of(test), fit.whitened(_values(f, test, elements)), matrices),
        r2_train=1 - _unexplained(share, fit.start, fit.whitened(orbit), matrices),
        homomorphism_defect=float(defect),
        multiplicities=multiplicities,
        remainder=rank - sum(_size(label, f.dim, parity) * n for label, n in multiplicities.items()),
        n_structures=len(f.graphs),
        n_rows=rows,
        quadrature_degree=quadrature_degree,
        fit=fit.maps,
        whitening=fit.whitening,
        unwhitening=fit.unwhitening,
    )


Oriented = Sequence[tuple[Graph, Tensor]]


def _values(f: StructureFunction, structures: Oriented, matrices: Tensor) -> Float[Tensor, "Q rows width"]:
    """Features of all nodes of structures, each in its own random orientation, under each matrix."""
    return torch.cat([f.on_orbit(g, matrices @ orientation) for g, orientation in structures], dim=1)


@dataclass(frozen=True)
class _Fit:
    """Least-squares fits of M(R) to whitened features of the training structures."""

    function: StructureFunction
    train: Oriented
    whitening: Tensor
    unwhitening: Tensor
    start: Float[Tensor, "rows rank"]
    inverse: Float[Tensor, "rank rows"]

    def whitened(self, orbit: Float[Tensor, "Q rows width"]) -> Float[Tensor, "Q rows rank"]:
        return orbit @ self.whitening.T

    def start_of(self, structures: Oriented) -> Float[Tensor, "rows rank"]:
        identity = torch.eye(self.function.dim, dtype=torch.float64)[None]
        return self.whitened(_values(self.function, structures, identity))[0]

    def maps_of_orbit(self, orbit: Float[Tensor, "Q rows width"]) -> Float[Tensor, "Q rank rank"]:
        return (self.inverse @ self.whitened(orbit)).transpose(1, 2)

    def maps(self, matrices: Float[Tensor, "Q D D"]) -> Float[Tensor, "Q rank rank"]:
        return self.maps_of_orbit(_values(self.function, self.train, matrices))


def _fit_action(f: StructureFunction, train: Oriented, orbit: Tensor, share: Tensor, min_rms: float) -> _Fit:
    moment = sum((w * o.T @ o for w, o in zip(share, orbit)), torch.zeros(())) / orbit.shape[1]
    size, axes = torch.linalg.eigh(moment)
    kept = size > min_rms**2 * size[-1]
    whitening = axes[:, kept].T / size[kept].sqrt()[:, None]
    unwhitening = axes[:, kept] * size[kept].sqrt()
    identity = torch.eye(f.dim, dtype=torch.float64)[None]
    start = _values(f, train, identity)[0] @ whitening.T
    rows, rank = start.shape
    if rows < 2 * rank:
        raise DataError(
            f"{rows} rows in the structures of the fit for {rank} dimensions of {f.name}: any function "
            "would fit; "
            f"wanted at least {2 * rank} rows, from more or larger structures"
        )
    singular = torch.linalg.svdvals(start)
    if not singular[-1] > INDEPENDENT * singular[0]:
        raise DataError(
            f"the structures are too similar: {f.name} at the {rows} nodes of the fit does not span its "
            f"{rank} "
            "dimensions; wanted more structures, or structures that differ more"
        )
    return _Fit(f, train, whitening, unwhitening, start, torch.linalg.pinv(start))


def _unexplained(share: Tensor, start: Tensor, orbit: Tensor, matrices: Tensor) -> float:
    """Share of the squares of h(R x) that M(R) h(x) does not explain."""
    residual = (orbit - start @ matrices.transpose(1, 2)).square().sum((1, 2))
    return float((share * residual).sum() / (share * orbit.square().sum((1, 2))).sum())


def _multiplicities(
    rotations: Tensor, weights: Tensor, trace: Tensor, l_max: int, parity: bool
) -> dict[str, float]:
    """Inner products of the character of an action (proper elements first) with those of the irreps."""
    out: dict[str, float] = {}
    for l, matrix in enumerate(rotation_irreps(l_max, rotations)):
        character = matrix.diagonal(dim1=1, dim2=2).sum(1)
        size = float((weights * character.square()).sum())  # 1; in the plane 2 for l > 0
        halves = [(weights * character * t).sum() / size for t in trace.split(len(rotations))]
        if parity:
            out |= {ir.name(l, p): float(halves[0] + p * halves[1]) / 2 for p in ((-1) ** l, -((-1) ** l))}
        else:
            out[str(l)] = float(halves[0])
    return out


def _size(label: str, dim: int, parity: bool) -> int:
    """Dimension of an irrep."""
    l = ir.parse(label)[0] if parity else int(label)
    if dim == 3:
        return 2 * l + 1
    return 2 if dim == 2 and l else 1

"""Symmetry generators: the motions of space along which a function does not change, from its derivatives."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.discovery.derivatives import (
    difference_error,
    distance_function,
    motion_derivatives,
    quantity_function,
)
from molequi.discovery.motions import describe_motions, named_motions, sorted_motions
from molequi.errors import ConfigError, DataError, ModelError
from molequi.graph import Graph
from molequi.quantities import Quantity
from molequi.util import tables as table
from molequi.util.html import html_heading, html_table

RIGID = 1e-3  # largest share of a deformation in a motion that is called rigid; at least the tolerance
MIN_DISPLACEMENT = 1e-6  # relative to other motions; smaller displacements are not tested by the structures
N_CHECKED = 16  # structures on which derivatives are compared with finite differences
STEP = 1e-5  # of finite differences, in radii of the structures
DIFFERENCE_TOLERANCE = 1e-5  # of finite differences, relative to the largest change, besides their own error


@dataclass(frozen=True, kw_only=True)
class SymmetryGenerators:
    """How much a function changes along motions x → X x + t of space; ``print`` shows it.

    Attributes
    ----------
    name : str
        The function.
    dim : int
        Dimensions D of space.
    dimension : int
        Number of singular values below `tolerance`: the dimension of the symmetry group.
    singular_values : tuple of float
        D² + D root mean square changes along orthonormal motions, each of which moves the atoms by 1 Å RMS;
        in descending order, relative to the largest one.
    gap : float
        Smallest singular value of the other motions over the largest one of the symmetries.
    descriptions : tuple of str
        The symmetries in words.
    controls : dict
        Relative changes along named motions. Scaling and shears are no symmetries of space.
    center : tuple of float
        Origin of the generators, in Å.
    n_structures, n_derivatives : int
        Structures and derivatives in use.
    tolerance : float
        Largest relative change along a symmetry.
    generators : tuple of (Tensor, Tensor)
        The symmetries as (X, t) about `center`.
    """

    name: str
    dim: int
    dimension: int
    singular_values: tuple[float, ...]
    gap: float
    descriptions: tuple[str, ...]
    controls: dict[str, float]
    center: tuple[float, ...]
    n_structures: int
    n_derivatives: int
    tolerance: float
    generators: tuple[tuple[Tensor, Tensor], ...]

    @property
    def summary(self) -> str:
        """The result in words."""
        if not self.dimension:
            return (
                "no continuous symmetry of space; the smallest relative change, "
                f"{self.singular_values[-1]:.1e}, is above {self.tolerance:.0e}"
            )
        euclidean = self.dimension == self.dim * (self.dim + 1) // 2 and not any(
            "no rigid motion" in words for words in self.descriptions
        )
        group = f", all of E({self.dim})" if euclidean else ""
        exact = self.singular_values[-self.dimension] <= 1e-6
        approximate = "" if exact else ", some of them approximate"
        return f"{self.dimension} continuous symmetries{group}{approximate}: {'; '.join(self.descriptions)}"

    @property
    def title(self) -> str:
        """The function and the number of derivatives."""
        gap = f"; gap {self.gap:.1e}" if 0 < self.dimension < len(self.singular_values) else ""
        return (
            f"symmetry generators of {self.name}; {self.n_derivatives} derivatives of {self.n_structures} "
            f"structures{gap}"
        )

    def _rows(self) -> list[tuple[str, str]]:
        rows = [(f"singular value {k + 1}", f"{s:.1e}") for k, s in enumerate(self.singular_values)]
        return rows + [(k, f"{v:.1e}") for k, v in self.controls.items()]

    def __str__(self) -> str:
        return "\n".join([self.title, *table.text_table(_HEAD, self._rows()), self.summary])

    def _repr_html_(self) -> str:
        return html_heading(self.title, self.summary) + html_table(_HEAD, self._rows())

    __repr__ = __str__

    def to_json(self) -> str:
        """All fields and the summary as JSON."""
        names = [n for n in self.__dataclass_fields__ if n != "generators"]
        return json.dumps(
            {
                **{n: table.json_ready(getattr(self, n)) for n in names},
                "summary": self.summary,
                "generators": [{"X": X.tolist(), "t": t.tolist()} for X, t in self.generators],
            },
            indent=1,
            allow_nan=False,
        )


_HEAD = ("motion", "relative change")


def symmetry_generators(
    model: Any,
    structures: Any,
    output: str | Quantity | None = None,
    *,
    tolerance: float = 1e-6,
    n_projections: int = 4,
    seed: int = 0,
    limit: int = 64,
) -> SymmetryGenerators:
    """Find the motions x → X x + t under which a quantity transforms as it declares, from its derivatives.

    A function f is invariant along a motion if Σ_i ∂f/∂x_i · (X x_i + t) = 0. The generators are therefore
    the null space of the rows (Σ_i ∂f/∂x_i x_iᵀ, Σ_i ∂f/∂x_i) over data. For vectors and tensors the
    transformation of the quantity itself is subtracted. Cells, velocities and given vectors transform with X.
    An invariant in space has six generators; with a field along z that acts on the height of each atom,
    three: the rotation about z and two translations.

    Rows are given in coordinates in which all motions move the atoms equally far. Otherwise rotations of
    large structures would seem worse than translations. Rows of structures with steeper slopes than the
    median, such as those with atoms that nearly touch, are scaled down to it.

    Two checks guard against false symmetries. Structures that are too similar show symmetries of any
    function: the null space is accepted only if a function of distances has no other symmetry than E(n) on
    the same structures. And derivatives are compared with finite differences, along random motions and random
    motions of the null space.

    Parameters
    ----------
    model, structures, limit
        As in `structure_function`. Every number of a plain function is taken as an invariant, unless `output`
        is a Quantity.
    output : str or Quantity, optional
        A quantity that the model predicts, by default the first one; for a function, its transformation.
    tolerance : float
        Largest change along a symmetry, relative to the largest change. 1e-6 is for symmetries that are built
        in, 0.05 for approximate symmetries that a network has acquired in training.
    n_projections : int
        Number of random combinations of the components of vectors, tensors and node values; each gives one
        row.
    seed : int
        Seed of random combinations and motions.

    Returns
    -------
    SymmetryGenerators
        ``print`` shows the singular values and the symmetries in words.

    Raises
    ------
    ConfigError
        For unknown outputs and settings out of range.
    DataError
        For constant functions, and for structures that do not test all motions.
    ModelError
        For values or derivatives that are not finite, and for derivatives that contradict finite differences.

    Examples
    --------
    >>> import torch, molequi as mq
    >>> graphs = [mq.Graph.single(torch.randn(6, 3, dtype=torch.float64)) for _ in range(30)]
    >>> def radius(graph):
    ...     return (graph.pos - graph.pos.mean(0)).square().sum().sqrt().reshape(1)
    >>> symmetry_generators(radius, graphs).summary
    '6 continuous symmetries, all of E(3): all translations; all rotations'
    """
    name, call, quantity, graphs = quantity_function(model, structures, output, limit)
    if n_projections < 1 or not 0 < tolerance < 1:
        raise ConfigError(
            f"n_projections={n_projections}, tolerance={tolerance}: wanted at least one projection, and a "
            "tolerance between 0 and 1"
        )
    if not isinstance(seed, Integral) or abs(seed) >= 2**63:
        raise ConfigError(f"seed={seed!r}: wanted a whole number below 2^63")
    problem = _Problem(call, quantity, graphs, n_projections, torch.Generator().manual_seed(int(seed)))
    dim = problem.dim
    several = [problem.derivatives(call, g) for g in graphs]
    unit, where = problem.orthonormal_motions(), problem.homogeneous
    count = sum(map(len, several))
    if count < 2 * (dim * dim + dim):
        raise DataError(
            f"{count} derivatives for {dim * dim + dim} motions; wanted at least {2 * (dim * dim + dim)}, "
            "from more "
            "structures or projections"
        )
    # Structures with steep slopes get the weight of the median one. Otherwise they would hide all others.
    steepness = torch.stack([(r @ unit).square().mean().sqrt() for r in several])
    weight = (steepness.median() / steepness).clamp(max=1.0).nan_to_num(1.0)
    rows = torch.cat([w * r for w, r in zip(weight, several)])
    _, singular, right = torch.linalg.svd((rows @ unit).flatten(1), full_matrices=False)
    values = _check_not_constant(name, call, graphs, float(singular[0]))
    relative = (singular / singular[0]).tolist()
    dimension = sum(s < tolerance for s in relative)
    # (X | t) about the center
    null = right[len(relative) - dimension :].reshape(dimension, dim, dim + 1) @ unit.T
    if dimension:
        problem.check_structures(values, unit, tolerance)
    problem.check_derivatives(name, weight, unit, null, float(singular[0]) / math.sqrt(len(rows)), tolerance)
    return _report(
        name,
        problem,
        relative,
        null,
        rows=len(rows),
        controls={
            k: float((rows.flatten(1) @ _unit_motion(m, where).flatten()).square().sum().sqrt() / singular[0])
            for k, m in named_motions(dim).items()
        },
        tolerance=tolerance,
    )


def _report(
    name: str,
    problem: "_Problem",
    relative: list[float],
    null: Float[Tensor, "n D D+1"],
    *,
    rows: int,
    controls: dict[str, float],
    tolerance: float,
) -> SymmetryGenerators:
    dim, dimension, radius = problem.dim, len(null), problem.radius
    rigid = max(RIGID, tolerance)
    # While X and t are compared, t is in units of the radius. Otherwise small molecules would seem not to
    # move.
    null[:, :, dim] /= radius
    motions = [(m[:, :dim], m[:, dim]) for m in sorted_motions(null, rigid)]
    words = describe_motions(motions, problem.center / radius, radius, rigid)
    gap = math.inf
    if 0 < dimension < len(relative):
        gap = relative[-dimension - 1] / max(relative[-dimension], 1e-300)
    return SymmetryGenerators(
        name=name,
        dim=dim,
        dimension=dimension,
        singular_values=tuple(relative),
        gap=gap,
        descriptions=tuple(words),
        controls=controls,
        center=tuple(problem.center.tolist()),
        n_structures=len(problem.graphs),
        n_derivatives=rows,
        tolerance=tolerance,
        generators=tuple((X, radius * t) for X, t in motions),
    )


class _Problem:
    """A function with its structures, in coordinates about their common center."""

    def __init__(
        self,
        call: Callable[[Graph], Tensor],
        quantity: Quantity,
        graphs: list[Graph],
        n_projections: int,
        generator: torch.Generator,
    ) -> None:
        self.call, self.quantity, self.graphs = call, quantity, graphs
        self.n_projections, self.generator = n_projections, generator
        self.dim = graphs[0].dim
        nodes = torch.cat([g.pos for g in graphs]).double()
        self.center = nodes.mean(0)
        self.radius = float((nodes - self.center).square().sum(1).mean().sqrt())
        squares = sum(float((g.pos - g.pos.mean(0)).square().sum()) for g in graphs)
        self.structure_radius = math.sqrt(squares / len(nodes)) or self.radius
        ones = torch.ones(len(nodes), 1, dtype=torch.float64)
        self.homogeneous = torch.cat([nodes - self.center, ones], dim=1)  # (x, 1) of all nodes

    def derivatives(self, call: Callable[[Graph], Tensor], graph: Graph) -> Float[Tensor, "R D D+1"]:
        return motion_derivatives(call, self.quantity, graph, self.center, self.n_projections, self.generator)

    def orthonormal_motions(self) -> Float[Tensor, "D+1 D+1"]:
        """Columns that map orthonormal coordinates to motions (X | t) of 1 Å RMS.

        The mean square of the displacement X x + t is Σ_a m_aᵀ K m_a with m_a = (X_a, t_a) and the same K for
        each component a.
        """
        where = self.homogeneous
        size, axes = torch.linalg.eigh(where.T @ where / len(where))
        if not size[0] > MIN_DISPLACEMENT**2 * size[-1]:
            point = size[-2] <= MIN_DISPLACEMENT**2 * size[-1]
            raise DataError(
                f"the structures lie in {'one point' if point else 'a plane or a line'}, so that some "
                "motions move "
                "no atom; wanted structures that extend in all dimensions"
            )
        return axes / size.sqrt()

    def check_structures(self, values: list[Tensor], unit: Tensor, tolerance: float) -> None:
        """Raise DataError if these structures show more symmetries than E(n) for a function of distances."""
        functions = [
            partial(distance_function, quantity=self.quantity, shape=v.shape, radius=self.structure_radius)
            for v in values
        ]
        rows = torch.cat([self.derivatives(f, g) for f, g in zip(functions, self.graphs)])
        singular = torch.linalg.svdvals((rows @ unit).flatten(1))
        found = int((singular < tolerance * singular[0]).sum())
        wanted = self.dim * (self.dim + 1) // 2
        if found > wanted:
            raise DataError(
                f"the structures are too similar: for a function that has {wanted} continuous symmetries "
                "they show "
                f"{found} within a tolerance of {tolerance:.0e}, so that symmetries found with them mean "
                "nothing; "
                "wanted structures of different shapes, in random orientations"
            )

    def check_derivatives(
        self,
        name: str,
        weight: Float[Tensor, "G"],
        unit: Tensor,
        null: Float[Tensor, "n D D+1"],
        scale: float,
        tolerance: float,
    ) -> None:
        """Raise ModelError if derivatives differ from finite differences, along any motion or `null`."""
        dim = self.dim
        every = torch.eye(dim * (dim + 1), dtype=torch.float64).unflatten(1, (dim, dim + 1)) @ unit.T
        stride = 1 + (len(self.graphs) - 1) // N_CHECKED
        step = STEP * self.structure_radius
        errors = [
            w
            * difference_error(self.call, self.quantity, g, self.center, [every, null], step, self.generator)
            for g, w in zip(self.graphs[::stride], weight[::stride])
        ]
        error, uncertainty = torch.stack(errors).square().mean(0).sqrt().T
        if not bool((error <= max(tolerance, DIFFERENCE_TOLERANCE) * scale + 3 * uncertainty).all()):
            raise ModelError(
                f"{name}: finite differences and derivatives differ by {float((error / scale).max()):.1e} "
                "of the "
                "largest change, so that a motion with zero derivative need not be a symmetry; wanted a "
                "function "
                "whose gradient is complete (no detach, no_grad, numpy or rounding inside)"
            )


def _check_not_constant(
    name: str, call: Callable[[Graph], Tensor], graphs: list[Graph], largest: float
) -> list[Tensor]:
    """Values of the function; raises DataError if derivatives are round-off of the values."""
    with torch.no_grad():
        values = [call(g).detach() for g in graphs]
    if not largest > 1e-12 * max(float(v.abs().max()) for v in values):
        raise DataError(
            f"{name}: it transforms as declared under all linear motions, so that every motion is a "
            "symmetry; wanted a function that depends on distances or directions"
        )
    return values


def _unit_motion(motion: Tensor, where: Tensor) -> Tensor:
    """The motion (X | t), scaled to a displacement of 1 Å RMS."""
    return motion / (where @ motion.T).square().sum(1).mean().sqrt()

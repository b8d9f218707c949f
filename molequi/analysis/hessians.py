"""Hessians of structures and their products with vectors: analytic of models, else by finite differences."""

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Gt
from ase import Atoms
from ase.constraints import FixAtoms

from molequi.analysis.relaxed import AnyCalculator
from molequi.analysis.second_derivatives import Method, second_derivatives
from molequi.data import Dataset
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.interfaces import Calculator
from molequi.model import Model
from molequi.readers import to_atoms
from molequi.simulation.inputs import as_calculator, check_energy, read_structure
from molequi.util.html import html_text
from molequi.util.signature import check_keywords

STEP = 0.01  # Å, of finite differences
Kind = Literal["vmap", "loop", "finite-differences"]
SecondDerivatives = Literal["analytic", "finite-differences"]
Precision = Literal["float64", "float32"]
One = Atoms | Graph | str | os.PathLike[str]


@dataclass(frozen=True)
class Hessian:
    """Second derivatives of the energy of one structure; printed, its size and how well its laws hold.

    Parameters
    ----------
    matrix : array, shape (3N, 3N)
        ∂²E/∂x∂x in eV/Å²; coordinates in the order x, y, z of atom 0, of atom 1, ….
    atoms : ase.Atoms
        The structure.
    forces : array, shape (N, 3)
        Forces in eV/Å.
    method : {"vmap", "loop", "finite-differences"}
        How it was computed.
    note : str
        Why not by "vmap", where that was tried first; else empty.
    asymmetry : float
        Largest difference of H_ij and H_ji in eV/Å² before they were averaged.
    std : array, shape (3N, 3N), optional
        Standard deviation over the members of an ensemble, in eV/Å².
    """

    matrix: np.ndarray
    atoms: Atoms
    forces: np.ndarray
    method: Kind
    note: str
    asymmetry: float
    std: np.ndarray | None = None

    @property
    def translation(self) -> float:
        """Largest component of H t in eV/Å² over translations t of all atoms by 1 Å. It is zero of a model
        that is invariant under translations.
        """
        sums = self.matrix.reshape(-1, len(self.atoms), 3).sum(1)
        return float(np.abs(sums).max())

    @property
    def rotation(self) -> float:
        """Largest component of H w - ω × g in eV/Å², where w = ω × x is a rigid rotation of unit length about
        the centre of mass, and g the gradient. It is zero of a model that is invariant under rotations.

        NaN for a periodic structure, which has no such law.
        """
        if self.atoms.pbc.any():
            return float("nan")
        away, found = self.atoms.positions - self.atoms.get_center_of_mass(), [0.0]
        for axis in np.eye(3):
            turn = np.cross(axis, away)
            size = np.linalg.norm(turn)
            if size > 1e-6:
                left = self.matrix @ turn.ravel() + np.cross(axis, self.forces).ravel()
                found.append(float(np.abs(left).max() / size))
        return max(found)

    def __str__(self) -> str:
        n = len(self.matrix)
        text = (
            f"Hessian of {self.atoms.get_chemical_formula()}, {n} × {n}, by {self.method}: largest element "
            f"{np.abs(self.matrix).max():.3g} eV/Å²; asymmetry {self.asymmetry:.1e}, translations "
            f"{self.translation:.1e}"
        )
        text += "" if np.isnan(self.rotation) else f", rotations {self.rotation:.1e}"
        return text + (f"\nnot by vmap: {self.note}" if self.note else "")

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def hessian(
    model: AnyCalculator,
    structures: One | Sequence[One] | Dataset,
    *,
    method: Kind | None = None,
    block: Annotated[int, Ge(1)] | None = None,
    dtype: Precision = "float64",
    step: Annotated[float, Gt(0)] | None = None,
) -> Any:
    """Second derivatives of the energy of structures.

    Of a model they are analytic: the gradient of the energy is differentiated again, by one backward pass for
    each row of the matrix. Of other calculators they are central differences of the forces. In a periodic
    structure all images of an atom move together.

    Parameters
    ----------
    model : Model, Ensemble, Calculator, ASE calculator, str or Path
        A model, its file, or another ASE calculator (``"gfn2-xtb"``, too). A model is copied, and of an
        ensemble it is the Hessian of the mean, with the standard deviation over its members.
    structures : ase.Atoms, Graph or path, a sequence of them, or Dataset
        What is differentiated. A path is one frame of a file, such as ``"frames.xyz@3"``.
    method : {"vmap", "loop", "finite-differences"}, optional
        Backward passes for many rows at once, which is fast; or row by row, which takes little memory; or
        differences of forces. By default "vmap" for models, with "loop" where an operation of the model
        cannot be batched (the result says so), and differences for other calculators.
    block : int, >= 1, optional
        Rows of one batched pass; 64 by default. Fewer need less memory. Only for "vmap".
    dtype : {"float64", "float32"}
        Precision of a model.
    step : float, > 0, optional
        Displacement of finite differences in Å; 0.01 by default. Only for them.

    Returns
    -------
    Hessian, or list of Hessian
        One for each structure; a list for a sequence.

    Raises
    ------
    ConfigError
        For settings out of range or without effect, analytic methods of a calculator that is no model, and
        models without an energy.

    Examples
    --------
    >>> import molequi as mq
    >>> from ase.build import molecule
    >>> found = hessian(mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1)), molecule("H2O"))
    >>> found.matrix.shape, found.method
    ((9, 9), 'vmap')
    """
    source = _source(model, dtype)
    chosen = _method(source, method, block, step)
    if isinstance(structures, (Atoms, Graph, str, os.PathLike)):
        return _hessian(source, _atoms(structures), chosen, method, block, step or STEP)
    frames = [_atoms(one) for one in structures]
    return [_hessian(source, frame, chosen, method, block, step or STEP) for frame in frames]


@check_keywords()
def hessian_vector_product(
    model: AnyCalculator,
    structure: One,
    vectors: np.ndarray | Sequence[object],
    *,
    method: Kind | None = None,
    dtype: Precision = "float64",
    step: Annotated[float, Gt(0)] | None = None,
) -> np.ndarray:
    """Products of the Hessian with vectors, without the Hessian.

    Parameters
    ----------
    model : Model, Ensemble, Calculator, ASE calculator, str or Path
        As in `hessian`; an ensemble gives the product of the mean.
    structure : ase.Atoms, Graph, str or Path
        One structure.
    vectors : array, shape (N, 3) or (R, N, 3)
        One vector or several.
    method : {"vmap", "loop", "finite-differences"}, optional
        As in `hessian`. A model takes one backward pass for each vector, another calculator two calculations
        of forces, at x ± step · v.
    dtype : {"float64", "float32"}
        Precision of a model.
    step : float, > 0, optional
        Displacement in Å of a vector of length 1 by finite differences; 0.01 by default.

    Returns
    -------
    array, shape of `vectors`
        H v in eV/Å² times the unit of the vectors.

    Raises
    ------
    ConfigError
        As `hessian` does.
    DataError
        If the shape of the vectors does not fit the structure, or if they are not finite.

    Examples
    --------
    >>> import molequi as mq
    >>> from ase.build import molecule
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1))
    >>> shift = np.ones((3, 3))  # a translation changes no force
    >>> bool(np.abs(hessian_vector_product(model, molecule("H2O"), shift)).max() < 1e-10)
    True
    """
    source = _source(model, dtype)
    atoms = _atoms(structure)
    chosen = _method(source, method, None, step)
    given = np.asarray(vectors, dtype=np.float64)
    if given.ndim not in (2, 3) or given.shape[-2:] != (len(atoms), 3):
        raise DataError(
            f"vectors of shape {given.shape} for {len(atoms)} atoms; wanted ({len(atoms)}, 3), or (R, "
            f"{len(atoms)}, 3) for several"
        )
    if not np.isfinite(given).all():
        raise DataError("vectors: found a number that is not finite")
    flat = given.reshape(-1, 3 * len(atoms))
    if chosen == "finite-differences":
        found = _differences(source, atoms, flat, step or STEP)
    else:
        found = _analytic(source, atoms, flat, method, None)[0].mean(0)
    return found.reshape(given.shape)


def chosen_method(atoms: Atoms, method: str | None, **steps: float | None) -> SecondDerivatives:
    """How a property is computed from second derivatives.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with its calculator and its constraints.
    method : {"analytic", "finite-differences"}, optional
        What the user asked for.
    **steps
        Options of finite differences by name, None where not given.

    Raises
    ------
    ConfigError
        For an analytic method of a calculator that is no model, or with constraints other than fixed atoms;
        and for options of finite differences with the analytic method.
    """
    if method not in (None, *get_args(SecondDerivatives)):
        raise ConfigError(f"method={method!r}: wanted 'analytic' or 'finite-differences'")
    given = {name: value for name, value in steps.items() if value is not None}
    others = sorted({type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)})
    model = isinstance(atoms.calc, Calculator)
    if method is None:
        return "analytic" if model and not given and not others else "finite-differences"
    if method == "finite-differences":
        return "finite-differences"
    if not model:
        raise ConfigError(
            f"method='analytic' differentiates a model; {type(atoms.calc).__name__} is another calculator, "
            "which takes method='finite-differences'"
        )
    if others:
        raise ConfigError(
            f"method='analytic' and the constraint {others[0]}: only FixAtoms is known to it; take "
            "method='finite-differences'"
        )
    if given:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f"{name}={value!r} has no effect with method='analytic'; leave it out, or take "
            "method='finite-differences'"
        )
    return "analytic"


def check_step(name: str, value: object, unit: str) -> None:
    """Raise ConfigError for a step of finite differences that is not above zero.

    Parameters
    ----------
    name : str
        What the user calls it.
    value : object
        What was given; None if nothing was.
    unit : str
        Its unit, for the message.
    """
    if value is None:
        return
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (np.isfinite(value) and value > 0)
    ):
        raise ConfigError(f"{name}={value!r}: wanted {unit}, above zero")


def frozen_model(calculator: Calculator) -> Model | Ensemble:
    """A copy of the calculator's model whose weights take no part in derivatives."""
    return deepcopy(calculator.model).requires_grad_(False)


def strain_derivatives(atoms: Atoms) -> np.ndarray:
    """Second derivatives of the energy of a periodic structure by displacements and strains.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with a model as its calculator.

    Returns
    -------
    array, shape (3N + 6, 3N + 6)
        In eV, Å and engineering strains (xx, yy, zz, yz, xz, xy), see `second_derivatives`.
    """
    source = _source(atoms.calc, "float64")
    assert isinstance(source, Calculator)
    found = second_derivatives(source.model, source.graph(atoms), strain=True).values
    values = found.mean(0) if isinstance(source.model, Ensemble) else found
    return np.asarray(values.cpu().numpy())


def _source(model: AnyCalculator, dtype: str) -> object:
    """A calculator in the precision that was asked for; of a model, one of its own."""
    if dtype not in ("float64", "float32"):
        raise ConfigError(f"dtype={dtype!r}: wanted 'float64' or 'float32'")
    if isinstance(model, Calculator):
        if model.model.dtype == getattr(torch, dtype):
            return model
        model = model.model
    calculator = as_calculator(model)
    check_energy(calculator)
    if isinstance(calculator, Calculator):
        return Calculator(frozen_model(calculator), device=calculator.model.device, dtype=dtype, skin=0.0)
    return calculator


def _method(source: object, method: str | None, block: int | None, step: float | None) -> str:
    """The method that is meant. Raises ConfigError for contradictions."""
    if block is not None and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
        raise ConfigError(f"block={block!r}: wanted a whole number, 1 or more")
    check_step("step", step, "Å")
    if method not in (None, *get_args(Kind)):
        raise ConfigError(f"method={method!r}: wanted {', '.join(map(repr, get_args(Kind)))}")
    analytic = isinstance(source, Calculator)
    if not analytic and method in get_args(Method):
        raise ConfigError(
            f"method={method!r} differentiates a model; {type(source).__name__} is another calculator, which "
            "takes method='finite-differences'"
        )
    chosen = method or ("vmap" if analytic else "finite-differences")
    if step is not None and chosen != "finite-differences":
        raise ConfigError(
            f"step={step:g} has no effect: this Hessian is analytic; leave it out, or take "
            "method='finite-differences'"
        )
    if block is not None and chosen != "vmap":
        raise ConfigError(f"block={block} has no effect with method={chosen!r}; leave it out")
    return chosen


def _atoms(given: object) -> Atoms:
    return to_atoms(given) if isinstance(given, Graph) else read_structure(given)  # type: ignore[arg-type]


def _hessian(
    source: object, atoms: Atoms, chosen: str, method: str | None, block: int | None, step: float
) -> Hessian:
    std, note = None, ""
    if chosen == "finite-differences":
        matrix = _differences(source, atoms, np.eye(3 * len(atoms)), step)
    else:
        rows, chosen, note = _analytic(source, atoms, None, method, block)
        matrix = rows.mean(0)
        std = rows.std(0, ddof=1) if len(rows) > 1 else None
    asymmetry = float(np.abs(matrix - matrix.T).max())
    frame = atoms.copy()
    frame.calc = source
    forces = frame.get_forces(apply_constraint=False)
    matrix = (matrix + matrix.T) / 2
    return Hessian(matrix, atoms, forces, chosen, note, asymmetry, std)  # type: ignore[arg-type]


def _analytic(
    source: object, atoms: Atoms, vectors: np.ndarray | None, method: str | None, block: int | None
) -> tuple[np.ndarray, str, str]:
    """Rows for each member of an ensemble, or for the one model; the method; a note."""
    assert isinstance(source, Calculator)
    graph = source.graph(atoms)
    given = None if vectors is None else torch.from_numpy(vectors).to(graph.pos)
    found = second_derivatives(
        source.model,
        graph,
        given,
        method=method,  # type: ignore[arg-type]
        block=block,
    )
    values = found.values.detach().cpu().numpy()
    return (values if isinstance(source.model, Ensemble) else values[None]), found.method, found.note


def _differences(source: object, atoms: Atoms, vectors: np.ndarray, step: float) -> np.ndarray:
    """Central differences of the forces along each vector, for a displacement of its norm times the step."""
    frame, rows = atoms.copy(), []
    frame.calc, frame.constraints = source, []
    for vector in vectors:
        size = np.linalg.norm(vector)
        if size == 0:
            rows.append(np.zeros_like(vector))
            continue
        move = (vector / size * step).reshape(-1, 3)
        ends = []
        for sign in (1, -1):
            frame.positions = atoms.positions + sign * move
            ends.append(frame.get_forces().ravel())
        rows.append((ends[1] - ends[0]) / (2 * step) * size)
    return np.array(rows)

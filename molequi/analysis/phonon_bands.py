"""Phonons of crystals by phonopy."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from molequi.analysis.hessians import (
    STEP,
    SecondDerivatives,
    check_step,
    chosen_method,
    hessian_vector_product,
)
from molequi.analysis.relaxed import AnyCalculator, Start, relaxed_start
from molequi.errors import ConfigError
from molequi.simulation.inputs import Structure
from molequi.util.html import html_text
from molequi.util.optional import require
from molequi.util.signature import check_keywords

if TYPE_CHECKING:
    from phonopy import Phonopy

_SHORTEST = 10.0  # Å, shortest lattice vector of an automatic supercell
_IMAGINARY = -0.1  # THz, below it a frequency counts as imaginary


@dataclass(frozen=True)
class Phonons:
    """Result of `phonons`; printed, the range of frequencies and whether the crystal is stable.

    Parameters
    ----------
    distance : array, shape (Q,)
        Distance along the path in 1/Å, without the factor 2π.
    bands : array, shape (Q, B)
        Frequencies in THz along the path; imaginary ones are negative.
    labels : list of (float, str)
        Places and names of the special points.
    frequency : array, shape (F,)
        Frequencies of the density of states in THz.
    density : array, shape (F,)
        Density of states in 1/THz of the primitive cell; its integral is 3 times the number of its atoms.
    lowest : float
        Lowest frequency of path and mesh in THz; negative if it is imaginary.
    supercell : tuple of int
        The supercell.
    start : Start
        The structure.
    phonopy : phonopy.Phonopy
        Phonopy's object with the force constants, for everything else that it can do.
    method : {"analytic", "finite-differences"}
        Where the force constants came from.
    """

    distance: np.ndarray
    bands: np.ndarray
    labels: list[tuple[float, str]]
    frequency: np.ndarray
    density: np.ndarray
    lowest: float
    supercell: tuple[int, int, int]
    start: Start
    phonopy: "Phonopy"
    method: str = "finite-differences"

    @property
    def stable(self) -> bool:
        """Whether no frequency is imaginary by more than 0.1 THz."""
        return self.lowest > _IMAGINARY

    def thermal(self, temperatures: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
        """Harmonic free energy, entropy and heat capacity of the primitive cell.

        Parameters
        ----------
        temperatures : sequence of float
            Temperatures in K.

        Returns
        -------
        dict of str to array
            ``free_energy_eV``, ``entropy_eV_per_K`` and ``heat_capacity_eV_per_K``.
        """
        # Without the acoustic modes at Γ, which are zero, and imaginary ones.
        self.phonopy.run_thermal_properties(temperatures=list(temperatures), cutoff_frequency=1e-2)
        found: Any = self.phonopy.thermal_properties
        joule = 1 / 96485.33212  # eV of one J/mol
        return {
            "free_energy_eV": np.array(found.free_energy) * 1e3 * joule,
            "entropy_eV_per_K": np.array(found.entropy) * joule,
            "heat_capacity_eV_per_K": np.array(found.heat_capacity) * joule,
        }

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The tables "phonons" (bands along the path) and "phonon_dos"."""
        bands = {f"band{k + 1}_THz": self.bands[:, k] for k in range(self.bands.shape[1])}
        dos = {"frequency_THz": self.frequency, "dos_per_THz": self.density}
        return {"phonons": {"distance_per_A": self.distance} | bands, "phonon_dos": dos}

    def __str__(self) -> str:
        size = "×".join(map(str, self.supercell))
        names = [name for _, name in self.labels]
        text = (
            f"phonons of a {size} supercell along {'-'.join(names)}: {self.bands.shape[1]} bands up to "
            f"{self.bands.max():.2f} THz; force constants: {self.method}; {self.start}"
        )
        if not self.stable:
            text += (
                f"\nimaginary frequencies down to {-self.lowest:.2f}i THz: the structure is not a minimum of "
                "this model, or the model was not trained on such displacements"
            )
        return text

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def phonons(
    atoms: Structure,
    calculator: AnyCalculator,
    *,
    supercell: Sequence[int] | None = None,
    method: SecondDerivatives | None = None,
    displacement: float | None = None,
    mesh: int = 16,
    points: int = 200,
    relax: bool = True,
    fmax: float = 0.001,
) -> Phonons:
    """Phonon bands and density of states of a crystal, from the Hessian of a supercell or by displacements.

    The structure and its lattice are relaxed first. Phonopy finds symmetry and primitive cell, and the force
    constants keep the acoustic sum rule. The path between the special points of the Brillouin zone is ASE's.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A crystal, or a file that ASE reads.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies, forces and stress, as in `molequi.md`.
    supercell : three ints, optional
        Repetitions of the cell; by default as many as make every lattice vector 10 Å or longer.
    method : {"analytic", "finite-differences"}, optional
        Force constants from the Hessian of a model, or from phonopy's finite displacements. By default
        "analytic" for a model, and displacements for other calculators and if a displacement is given.
    displacement : float, > 0, optional
        Displacement of the atoms in Å for finite differences; 0.01 by default.
    mesh : int, >= 1
        Points of the density of states in each direction.
    points : int, >= 2
        Points of the path.
    relax : bool
        Relax the structure first; if not, the force and pressure that are left are in the result.
    fmax : float
        Threshold of the relaxation in eV/Å.

    Returns
    -------
    Phonons
        Bands, density of states, and phonopy's object.

    Raises
    ------
    ConfigError
        For settings out of range, structures that are no crystals and models without an energy.
    MissingPackageError
        Without phonopy: ``pip install 'molequi[phonons]'``.
    """
    require("phonopy", "phonons", "phonons")
    _check(supercell, mesh, points)
    check_step("displacement", displacement, "Å")
    start = relaxed_start(atoms, calculator, relax_first=relax, cell=True, fmax=fmax, what="phonons")
    size = _repetitions(start.atoms) if supercell is None else tuple(int(n) for n in supercell)
    chosen = chosen_method(start.atoms, method, displacement=displacement)
    run = _supercell(start.atoms, size)
    if chosen == "analytic":
        _analytic(run, start.atoms)
    else:
        _displacements(run, start.atoms, displacement or STEP)
    run.symmetrize_force_constants()
    primitive = run.primitive
    cell = Atoms(numbers=primitive.numbers, cell=primitive.cell, pbc=True).cell
    path = cell.bandpath(npoints=points)
    run.run_qpoints(path.kpts)
    qpoints: Any = run.qpoints
    bands = np.asarray(qpoints.frequencies)
    distance, places, names = path.get_linear_kpoint_axis()
    run.run_mesh([mesh] * 3, is_gamma_center=True)
    run.run_total_dos()
    dos: Any = run.total_dos
    grid: Any = run.mesh
    labels: list[tuple[float, str]] = []
    for place, name in zip(places, names):
        shown = "Γ" if name == "G" else str(name)
        if labels and abs(labels[-1][0] - place) < 1e-9:  # the path jumps here
            labels[-1] = (labels[-1][0], f"{labels[-1][1]}|{shown}")
        else:
            labels.append((float(place), shown))
    return Phonons(
        np.asarray(distance),
        bands,
        labels,
        np.asarray(dos.frequency_points),
        np.asarray(dos.dos),
        float(min(bands.min(), grid.frequencies.min())),
        (size[0], size[1], size[2]),
        start,
        run,
        chosen,
    )


def _check(supercell: Sequence[int] | None, mesh: int, points: int) -> None:
    if supercell is not None and not (
        isinstance(supercell, (list, tuple, np.ndarray))
        and len(supercell) == 3
        and all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in supercell)
    ):
        raise ConfigError(
            f"supercell={supercell!r}: wanted three whole numbers above zero, such as [3, 3, 3]"
        )
    for name, value, least in (("mesh", mesh, 1), ("points", points, 2)):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name}={value!r}: wanted a whole number, {least} or more")


def _repetitions(atoms: Atoms) -> tuple[int, ...]:
    return tuple(int(np.ceil(_SHORTEST / length)) for length in atoms.cell.lengths())


def _supercell(atoms: Atoms, size: Sequence[int]) -> "Phonopy":
    """Phonopy's object of the supercell."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )
    with warnings.catch_warnings():
        # Phonopy 4 says that it found a smaller primitive cell, which is what "auto" asks for.
        warnings.filterwarnings("ignore", message="primitive_matrix")
        # Relaxed positions are symmetric up to the threshold of the relaxation.
        return Phonopy(cell, np.diag(size), primitive_matrix="auto", symprec=1e-3, log_level=0)


def _analytic(run: "Phonopy", atoms: Atoms) -> None:
    """Force constants from the Hessian: the rows of the atoms of one primitive cell."""
    one = run.supercell
    frame = Atoms(one.symbols, cell=one.cell, scaled_positions=one.scaled_positions, pbc=True)
    frame.info, frame.calc = dict(atoms.info), atoms.calc
    first = np.asarray(run.primitive.p2s_map)
    vectors = np.zeros((len(first), 3, len(frame), 3))
    for k, atom in enumerate(first):
        vectors[k, :, atom] = np.eye(3)
    found = hessian_vector_product(atoms.calc, frame, vectors.reshape(-1, len(frame), 3))
    run.force_constants = found.reshape(len(first), 3, len(frame), 3).transpose(0, 2, 1, 3)


def _displacements(run: "Phonopy", atoms: Atoms, displacement: float) -> None:
    """Force constants by phonopy's finite displacements."""
    run.generate_displacements(distance=displacement)
    forces = []
    for one in run.supercells_with_displacements or ():
        frame = Atoms(one.symbols, cell=one.cell, scaled_positions=one.scaled_positions, pbc=True)
        frame.info, frame.calc = dict(atoms.info), atoms.calc
        forces.append(frame.get_forces())
    run.forces = np.array(forces)
    run.produce_force_constants()

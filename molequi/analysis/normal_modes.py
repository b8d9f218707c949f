"""Vibrations of molecules, from the Hessian of a model or by ASE's finite differences."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.vibrations import Vibrations, VibrationsData

from molequi.analysis.hessians import STEP, SecondDerivatives, check_step, chosen_method, hessian
from molequi.analysis.relaxed import AnyCalculator, Start, relaxed_start
from molequi.analysis.thermochemistry import Thermochemistry, thermochemistry_of
from molequi.errors import ConfigError
from molequi.simulation.inputs import Structure
from molequi.util.html import html_table, html_text
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

_EV_PER_CM = 1.239841984e-4  # h c (CODATA 2018)
_UNIT = units._hbar * units.m / np.sqrt(units._e * units._amu)  # ħ √(eV/Å²/u) in eV
_LINE = 1e-2  # Å; below it a rotation of the atoms counts as none
_HEAD = ("mode", "cm⁻¹", "")


@dataclass(frozen=True)
class NormalModes:
    """Result of `vibrations`; printed, a table of the frequencies.

    Parameters
    ----------
    wavenumber : array, shape (M,)
        Wavenumbers in 1/cm, in increasing order; imaginary ones are negative.
    modes : array, shape (M, N, 3)
        Displacements of the atoms in each mode, of length 1 when weighted with √m.
    internal : array of bool, shape (M,)
        Which modes are vibrations and not motions of the whole. Translations and rotations are projected out
        of these, so a soft vibration stays one.
    start : Start
        The structure.
    data : ase.vibrations.VibrationsData
        ASE's result, with the Hessian and everything that ASE makes of it, without a projection.
    method : {"analytic", "finite-differences"}
        Where the Hessian came from.
    """

    wavenumber: np.ndarray
    modes: np.ndarray
    internal: np.ndarray
    start: Start
    data: VibrationsData
    method: str = "finite-differences"

    @property
    def rigid(self) -> int:
        """Number of modes that move the whole: 6 for a molecule, 5 for a linear one, 3 in a lattice; with
        fixed atoms, those of its rotations that leave these where they are.
        """
        return int((~self.internal).sum())

    @property
    def imaginary(self) -> int:
        """Number of vibrations with an imaginary frequency: 0 in a minimum, 1 at a transition state."""
        return int((self.wavenumber[self.internal] < 0).sum())

    @property
    def zero_point_energy(self) -> float:
        """Zero-point energy of the real vibrations in eV."""
        return float(self.wavenumber[self.internal].clip(min=0).sum() * _EV_PER_CM / 2)

    @check_keywords()
    def thermochemistry(
        self,
        temperature: float | Sequence[float] = 298.15,
        *,
        pressure: float | None = None,
        symmetry_number: int | None = None,
        spin: int | None = None,
        transition_state: bool = False,
    ) -> Thermochemistry:
        """Internal energy, enthalpy, entropy and Gibbs energy of a rigid rotor with harmonic vibrations.

        A molecule is an ideal gas, by ASE's ``IdealGasThermo``. A structure that is periodic or has fixed
        atoms only vibrates, by ASE's ``HarmonicThermo``; for crystals see `Phonons.thermal`.

        Parameters
        ----------
        temperature : float or sequence of float
            Temperatures in K.
        pressure : float, > 0, optional
            Pressure of the gas in Pa; 101325 by default.
        symmetry_number : int, >= 1, optional
            Number of rotations that map the molecule onto itself; by default those found with a tolerance of
            0.01 Å.
        spin : int, >= 1, optional
            The multiplicity 2S + 1; by default that of ``atoms.info``, or the lowest that the number of
            electrons allows.
        transition_state : bool
            Leave out the one imaginary vibration of a transition state.

        Returns
        -------
        Thermochemistry
            A row for each temperature.

        Raises
        ------
        ConfigError
            For settings out of range or without effect, and a multiplicity that is not possible.
        DataError
            For imaginary vibrations, and for some that cost nothing.

        Examples
        --------
        >>> from ase.build import molecule
        >>> from ase.calculators.emt import EMT
        >>> found = vibrations(molecule("N2"), EMT()).thermochemistry([200, 300])
        >>> bool(found.gibbs_energy[1] < found.gibbs_energy[0]), found.note
        (True, 'ideal gas at 101325 Pa, linear, symmetry number 2, multiplicity 1')
        """
        return thermochemistry_of(
            self.start.atoms,
            self.wavenumber[self.internal],
            self.rigid,
            temperature=temperature,
            transition_state=transition_state,
            unit=_EV_PER_CM,
            pressure=pressure,
            symmetry_number=symmetry_number,
            spin=spin,
        )

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "vibrations": ``mode``, ``wavenumber_cm-1``, ``energy_meV`` and ``internal`` (0 or 1)."""
        count = np.arange(len(self.wavenumber))
        energy = self.wavenumber * _EV_PER_CM * 1e3
        columns = {"mode": count, "wavenumber_cm-1": self.wavenumber, "energy_meV": energy}
        return {"vibrations": columns | {"internal": self.internal.astype(int)}}

    def _rows(self) -> list[list[str]]:
        return [
            [str(k), f"{value:.1f}" if value >= 0 else f"{-value:.1f}i", "" if own else "whole"]
            for k, (value, own) in enumerate(zip(self.wavenumber, self.internal))
        ]

    def _notes(self) -> list[str]:
        lines = [f"zero-point energy {self.zero_point_energy:.4f} eV; Hessian: {self.method}; {self.start}"]
        if self.imaginary:
            lines.append(
                f"{self.imaginary} imaginary (i): the structure is not a minimum of this model; "
                + ("it is a saddle point" if self.start.converged else "relax it first")
            )
        return lines

    def __str__(self) -> str:
        return "\n".join([*text_table(_HEAD, self._rows(), left=(2,)), *self._notes()])

    def _repr_html_(self) -> str:
        return html_table(_HEAD, self._rows(), left=(2,)) + html_text("\n".join(self._notes()))

    __repr__ = __str__


@check_keywords()
def vibrations(
    atoms: Structure,
    calculator: AnyCalculator,
    *,
    method: SecondDerivatives | None = None,
    displacement: float | None = None,
    relax: bool = True,
    fmax: float = 0.001,
) -> NormalModes:
    """Normal modes of a molecule, from the analytic Hessian of a model or by finite differences of forces.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A molecule, or a file that ASE reads. Of a crystal these are the modes at Γ of its cell. Fixed atoms
        do not move.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces, as in `molequi.md`.
    method : {"analytic", "finite-differences"}, optional
        The Hessian of `molequi.hessian`, or ASE's ``Vibrations``. By default "analytic" for a model, and
        differences for other calculators, if a displacement is given, and with constraints other than fixed
        atoms.
    displacement : float, > 0, optional
        Displacement of the atoms in Å for finite differences; 0.01 by default.
    relax : bool
        Relax the positions first; if not, the force that is left is in the result.
    fmax : float
        Threshold of the relaxation in eV/Å.

    Returns
    -------
    NormalModes
        Wavenumbers, modes and the zero-point energy.

    Raises
    ------
    ConfigError
        For settings out of range or without effect, and models without an energy.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from ase.calculators.emt import EMT
    >>> found = vibrations(molecule("N2"), EMT())
    >>> found.rigid, found.imaginary, found.method
    (5, 0, 'finite-differences')
    """
    check_step("displacement", displacement, "Å")
    start = relaxed_start(atoms, calculator, relax_first=relax, cell=False, fmax=fmax, what="vibrations")
    chosen = chosen_method(start.atoms, method, displacement=displacement)
    if not VibrationsData.indices_from_constraints(start.atoms):
        raise ConfigError("vibrations: all atoms are fixed; wanted at least one that moves")
    data = _analytic(start) if chosen == "analytic" else _differences(start, displacement or STEP)
    wavenumber, modes, internal = _normal_modes(data, _rigid_motions(start.atoms, data.get_indices()))
    return NormalModes(wavenumber, modes, internal, start, data, chosen)


def _analytic(start: Start) -> VibrationsData:
    """ASE's data with the Hessian of a model, without its fixed atoms."""
    moving = VibrationsData.indices_from_constraints(start.atoms)
    matrix = hessian(start.atoms.calc, start.atoms).matrix
    rows = (3 * np.array(moving)[:, None] + np.arange(3)).ravel()
    return VibrationsData.from_2d(start.atoms, matrix[np.ix_(rows, rows)], moving)


def _differences(start: Start, displacement: float) -> VibrationsData:
    with tempfile.TemporaryDirectory() as folder:  # ASE keeps the forces in files
        run = Vibrations(start.atoms, name=str(Path(folder) / "vibrations"), delta=displacement)
        run.run()
        return run.get_vibrations()


def _rigid_motions(atoms: Atoms, moving: np.ndarray) -> np.ndarray:
    """Translations and rotations of the moving atoms that leave the others in place, shape (3M, R)."""
    if any(not isinstance(one, FixAtoms) for one in atoms.constraints):
        return np.zeros((3 * len(moving), 0))
    away = atoms.positions - atoms.get_center_of_mass()
    columns = [np.broadcast_to(axis, away.shape) for axis in np.eye(3)]
    if not atoms.pbc.any():
        columns += [np.cross(axis, away) for axis in np.eye(3)]
    motions = np.stack(columns, -1)
    fixed = np.setdiff1d(np.arange(len(atoms)), moving)
    _, sizes, mixed = np.linalg.svd(motions[fixed].reshape(-1, len(columns)))
    free = mixed[(sizes > _LINE).sum() :].T  # combinations that leave the fixed atoms in place
    found = motions[moving].reshape(3 * len(moving), -1) @ free
    _, sizes, mixed = np.linalg.svd(found)
    return found @ mixed[: (sizes > _LINE).sum()].T  # a line of atoms does not turn about itself


def _normal_modes(data: VibrationsData, motions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavenumbers, modes and which are vibrations: the Hessian within and without the rigid motions."""
    moving = data.get_indices()
    root = np.repeat(data.get_atoms().get_masses()[moving] ** 0.5, 3)
    hessian = data.get_hessian_2d() / root / root[:, None]
    basis = np.linalg.qr(root[:, None] * motions, mode="complete")[0]
    count, squares, vectors = motions.shape[1], [], []
    for part in (basis[:, :count], basis[:, count:]):
        values, own = np.linalg.eigh(part.T @ hessian @ part)
        squares.append(values)
        vectors.append(part @ own)
    square, internal = np.concatenate(squares), np.arange(len(root)) >= count
    wavenumber = np.sign(square) * np.sqrt(np.abs(square)) * _UNIT / _EV_PER_CM
    modes = np.zeros((len(root), len(data.get_atoms()), 3))
    modes[:, moving] = (np.hstack(vectors) / root[:, None]).T.reshape(len(root), -1, 3)
    order = np.argsort(wavenumber, kind="stable")
    return wavenumber[order], modes[order], internal[order]

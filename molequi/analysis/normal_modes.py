"""Vibrations of molecules, from the Hessian of a model or by ASE's finite differences."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.vibrations import Vibrations, VibrationsData

from molequi.analysis.hessians import STEP, SecondDerivatives, check_step, chosen_method, hessian
from molequi.analysis.relaxed import AnyCalculator, Start, relaxed_start
from molequi.simulation.inputs import Structure
from molequi.util.html import html_table, html_text
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

_EV_PER_CM = 1.239841984e-4  # h c (CODATA 2018)
_HEAD = ("mode", "cm⁻¹", "")


@dataclass(frozen=True)
class NormalModes:
    """Result of `vibrations`; printed, a table of the frequencies.

    Parameters
    ----------
    wavenumber : array, shape (M,)
        Wavenumbers in 1/cm, in increasing order; imaginary ones are negative.
    modes : array, shape (M, N, 3)
        Displacements of the atoms in each mode.
    rigid : int
        Number of modes that move the whole: 6 for a molecule, 5 for a linear one, 3 in a lattice, 0 with
        fixed atoms. Those with the smallest absolute wavenumbers count as such.
    start : Start
        The structure.
    data : ase.vibrations.VibrationsData
        ASE's result, with the Hessian and everything that ASE makes of it.
    method : {"analytic", "finite-differences"}
        Where the Hessian came from.
    """

    wavenumber: np.ndarray
    modes: np.ndarray
    rigid: int
    start: Start
    data: VibrationsData
    method: str = "finite-differences"

    @property
    def internal(self) -> np.ndarray:
        """Which modes are vibrations and not motions of the whole, shape (M,)."""
        mask = np.ones(len(self.wavenumber), dtype=bool)
        mask[np.abs(self.wavenumber).argsort()[: self.rigid]] = False
        return mask

    @property
    def imaginary(self) -> int:
        """Number of vibrations with an imaginary frequency: 0 in a minimum, 1 at a transition state."""
        return int((self.wavenumber[self.internal] < 0).sum())

    @property
    def zero_point_energy(self) -> float:
        """Zero-point energy of the real vibrations in eV."""
        return float(self.wavenumber[self.internal].clip(min=0).sum() * _EV_PER_CM / 2)

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
    data = _analytic(start) if chosen == "analytic" else _differences(start, displacement or STEP)
    energies, modes = data.get_energies_and_modes(all_atoms=True)
    values = energies.real - np.abs(energies.imag)
    order = np.argsort(values, kind="stable")
    rigid = _rigid_motions(start)
    return NormalModes((values / _EV_PER_CM)[order], modes[order], rigid, start, data, chosen)


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


def _rigid_motions(start: Start) -> int:
    atoms = start.atoms
    if atoms.constraints:
        return 0
    if atoms.pbc.any():
        return 3
    away = atoms.positions - atoms.get_center_of_mass()
    turns = {0: 0, 1: 2}  # a single atom does not turn, a line of atoms does not turn about itself
    return 3 + turns.get(int(np.linalg.matrix_rank(away, tol=1e-2)), 3)

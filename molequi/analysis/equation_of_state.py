"""Equation of state: energy against volume, and the bulk modulus."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.eos import EquationOfState

from molequi.analysis.relaxed import GPA, AnyCalculator, Start, relaxed_ions, relaxed_start
from molequi.errors import ConfigError, DataError
from molequi.simulation.inputs import Structure
from molequi.util.html import html_text
from molequi.util.signature import check_keywords


@dataclass(frozen=True)
class EnergyVolume:
    """Result of `eos`; printed, volume, energy and bulk modulus of the minimum.

    Parameters
    ----------
    volumes : array, shape (P,)
        Volumes in Å³.
    energies : array, shape (P,)
        Energies in eV.
    volume : float
        Volume of the minimum in Å³.
    energy : float
        Energy of the minimum in eV.
    bulk_modulus : float
        Bulk modulus at the minimum in GPa.
    derivative : float
        Its derivative with respect to the pressure.
    form : str
        Name of the equation.
    start : Start
        The structure that was scaled.
    """

    volumes: np.ndarray
    energies: np.ndarray
    volume: float
    energy: float
    bulk_modulus: float
    derivative: float
    form: str
    start: Start

    def tables(self) -> dict[str, dict[str, np.ndarray]]:
        """The table "eos" with the columns ``volume_A3`` and ``energy_eV``."""
        return {"eos": {"volume_A3": self.volumes, "energy_eV": self.energies}}

    def __str__(self) -> str:
        n = len(self.start.atoms)
        return (
            f"eos ({self.form}): volume {self.volume:.4f} Å³ ({self.volume / n:.4f} per atom), energy "
            f"{self.energy:.5f} eV, bulk modulus {self.bulk_modulus:.2f} GPa, its derivative "
            f"{self.derivative:.2f}; {self.start}"
        )

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


@check_keywords()
def eos(
    atoms: Structure,
    calculator: AnyCalculator,
    *,
    strain: float = 0.02,
    points: int = 11,
    form: Literal["birchmurnaghan", "murnaghan", "vinet", "pouriertarantola"] = "birchmurnaghan",
    relax: bool = True,
    fmax: float = 0.002,
) -> EnergyVolume:
    """Equation of state of a crystal: its energy at several volumes, fitted by ASE's ``EquationOfState``.

    The structure and its lattice are relaxed first. Then the cell is scaled and the atoms relax in each cell.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A crystal, or a file that ASE reads.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies, forces and stress, as in `molequi.md`.
    strain : float, > 0
        Largest strain of the lattice vectors to both sides.
    points : int, >= 5
        Number of volumes.
    form : str
        Equation that is fitted.
    relax : bool
        Relax the structure first; if not, the force that is left is in the result.
    fmax : float
        Threshold of the relaxations in eV/Å.

    Returns
    -------
    EnergyVolume
        Volume, energy and bulk modulus of the minimum.

    Raises
    ------
    ConfigError
        For settings out of range, structures that are no crystals and models without an energy.
    DataError
        If the energy has no minimum between the volumes.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> round(eos(bulk("Cu"), EMT()).bulk_modulus)
    134
    """
    if not (np.isfinite(strain) and 0 < strain < 0.5):
        raise ConfigError(f"strain={strain!r}: wanted a number between 0 and 0.5")
    if not isinstance(points, (int, np.integer)) or isinstance(points, bool) or points < 5:
        raise ConfigError(f"points={points!r}: wanted a whole number, five or more")
    forms = ("birchmurnaghan", "murnaghan", "vinet", "pouriertarantola")
    if form not in forms:
        raise ConfigError(f"form={form!r}: wanted one of {', '.join(forms)}")
    start = relaxed_start(atoms, calculator, relax_first=relax, cell=True, fmax=fmax, what="eos")
    volumes, energies = [], []
    for scale in np.linspace(1 - strain, 1 + strain, points):
        frame = start.atoms.copy()
        frame.calc = start.atoms.calc
        frame.set_cell(frame.cell * scale, scale_atoms=True)
        frame = relaxed_ions(frame, fmax) if relax else frame
        volumes.append(frame.cell.volume)
        energies.append(frame.get_potential_energy())
    lowest = int(np.argmin(energies))
    if lowest in (0, points - 1):
        raise DataError(
            f"eos: the energy falls to the end of the volumes, {volumes[0]:.4g} to {volumes[-1]:.4g} Å³: no "
            "minimum between them; relax the lattice first (relax=True), or take a larger strain"
        )
    fit = EquationOfState(volumes, energies, eos=form)
    volume, energy, modulus = fit.fit()
    return EnergyVolume(
        np.array(volumes),
        np.array(energies),
        float(volume),
        float(energy),
        float(modulus) / GPA,
        float(fit.eos_parameters[2]),
        form,
        start,
    )

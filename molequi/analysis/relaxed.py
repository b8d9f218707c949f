"""The start of every calculation on a minimum: a relaxed structure, or the force that is left."""

import os
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError
from molequi.model import Model
from molequi.simulation.inputs import (
    Structure,
    as_calculator,
    check_energy,
    properties_of,
    read_structure,
)
from molequi.simulation.relaxation import relax
from molequi.util.html import html_text

AnyCalculator = BaseCalculator | Model | Ensemble | str | os.PathLike[str]
GPA = units.GPa
_STEPS = 1000


@dataclass(frozen=True)
class Start:
    """A structure to start from.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with its calculator.
    force : float
        The largest force that is left, in eV/Å.
    pressure : float
        The pressure that is left, in GPa; NaN if it is not known.
    converged : bool
        Whether the relaxation reached its threshold; False without one.
    """

    atoms: Atoms
    force: float
    pressure: float
    converged: bool

    def __str__(self) -> str:
        text = f"largest force {self.force:.1e} eV/Å"
        if np.isfinite(self.pressure):
            text += f", pressure {self.pressure:.2g} GPa"
        return ("relaxed start: " if self.converged else "NOT relaxed: ") + text

    def _repr_html_(self) -> str:
        return html_text(str(self))

    __repr__ = __str__


def relaxed_start(
    atoms: Structure, calculator: AnyCalculator, *, relax_first: bool, cell: bool, fmax: float, what: str
) -> Start:
    """Relax a structure, or measure how far it is from a minimum.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A structure, or a file that ASE reads.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces.
    relax_first : bool
        Whether to relax.
    cell : bool
        Relax the lattice too; the structure must be periodic in three directions.
    fmax : float
        Threshold of the forces in eV/Å.
    what : str
        Name of the function, for messages.

    Raises
    ------
    ConfigError
        If the structure or the calculator lacks what is needed.
    """
    frame = read_structure(atoms)
    frame.calc = as_calculator(calculator)
    check_energy(frame.calc)
    if not isinstance(relax_first, bool):
        raise ConfigError(f"relax={relax_first!r}: wanted True or False")
    if cell and not (frame.pbc.all() and frame.cell.volume > 0 and "stress" in properties_of(frame.calc)):
        molecule = (
            ""
            if frame.pbc.any()
            else "; the normal modes of a molecule:\n  molequi vibrations MODEL STRUCTURES\nor in Python "
            "mq.vibrations(atoms, calculator)"
        )
        raise ConfigError(
            f"{what} of a structure with pbc={frame.pbc.tolist()}, a cell of {frame.cell.volume:g} Å^3 and a "
            f"calculator of {', '.join(properties_of(frame.calc))}: wanted a crystal, periodic in three "
            f"directions, and stress{molecule}"
        )
    converged = False
    if relax_first:
        found = relax(frame, frame.calc, cell=cell, fmax=fmax, steps=_STEPS, progress=False)
        frame, converged = found.atoms, found.converged
    force = float(np.linalg.norm(frame.get_forces(), axis=1).max())
    pressure = float(-frame.get_stress()[:3].mean() / GPA) if cell else float("nan")
    return Start(frame, force, pressure, converged)


def relaxed_ions(atoms: Atoms, fmax: float) -> Atoms:
    """The structure with relaxed positions in its fixed cell.

    Parameters
    ----------
    atoms : ase.Atoms
        A structure with a calculator.
    fmax : float
        Threshold of the forces in eV/Å.
    """
    if np.linalg.norm(atoms.get_forces(), axis=1).max() <= fmax:
        return atoms
    return relax(atoms, atoms.calc, fmax=fmax, steps=_STEPS, progress=False).atoms

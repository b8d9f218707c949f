"""Checks of each frame: forces, energy, temperature and uncertainty must stay within bounds."""

import math
import sys
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator


@dataclass(frozen=True)
class Bounds:
    """What every frame must keep. By default energy and forces only have to be finite.

    Parameters
    ----------
    max_force : float
        Largest force on an atom in eV/Å.
    max_temperature : float
        Largest temperature in K.
    kelvin : float
        Temperature per kinetic energy in K/eV.
    max_std : float, optional
        Largest standard deviation of the force on an atom in eV/Å.
    """

    max_force: float = sys.float_info.max
    max_temperature: float = math.inf
    kelvin: float = 0.0
    max_std: float | None = None

    def violation(self, atoms: Atoms) -> str:
        """Which force, energy or temperature is out of bounds, in words; an empty string if none is.

        Parameters
        ----------
        atoms : ase.Atoms
            A frame with a calculator.
        """
        force = np.linalg.norm(atoms.get_forces(), axis=1)
        small = force <= self.max_force  # False for NaN
        if not small.all():
            k = int(np.where(small, -1.0, np.where(np.isfinite(force), force, np.inf)).argmax())
            return (
                f"the force on {_named(atoms, k)} is {force[k]:g} eV/Å, more than {self.max_force:g} or "
                "not finite"
            )
        energy, heat = atoms.get_potential_energy(), atoms.get_kinetic_energy() * self.kelvin
        if not np.isfinite(energy):
            return f"the energy is {energy}"
        if not heat <= self.max_temperature:
            k = int((np.linalg.norm(atoms.get_momenta(), axis=1) ** 2 / atoms.get_masses()).argmax())
            return (
                f"the temperature is {heat:.0f} K, more than {self.max_temperature:.0f}; fastest is "
                f"{_named(atoms, k)}"
            )
        return ""

    def uncertainty(self, atoms: Atoms) -> str:
        """Which force is too uncertain, in words; an empty string if none is.

        Parameters
        ----------
        atoms : ase.Atoms
            A frame with a calculator.
        """
        std = None if self.max_std is None else forces_std(atoms.calc)
        if std is not None and self.max_std is not None and not (std <= self.max_std).all():
            k = int(std.argmax())
            return (
                f"the force on {_named(atoms, k)} is uncertain: its standard deviation is {std[k]:.3g} eV/Å, "
                f"more than max_std={self.max_std:g}"
            )
        return ""


def forces_std(calculator: BaseCalculator | None) -> np.ndarray | None:
    """Standard deviation of the force on each atom (N,) in eV/Å of the last calculation, if there is one."""
    return getattr(calculator, "results", {}).get("forces_std")


def _named(atoms: Atoms, k: int) -> str:
    return f"atom {k} ({atoms.symbols[k]})"

"""Integrators of ASE, and velocities to begin with."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from molequi.simulation.options import Barostat, Thermostat


@dataclass(frozen=True)
class Settings:
    """Settings that decide the trajectory, checked.

    Parameters
    ----------
    ensemble : "nve", "langevin" or "npt"
        The ensemble.
    temperature : float or None
        Temperature in K; None keeps the velocities of the structure.
    timestep : float
        Time step in fs.
    thermostat : Thermostat
        Options of "langevin" and "npt".
    barostat : Barostat
        Options of "npt".
    seed : int
        Seed of velocities and random forces.
    every : int
        Steps between saved frames.
    """

    ensemble: Literal["nve", "langevin", "npt"]
    temperature: float | None
    timestep: float
    thermostat: Thermostat
    barostat: Barostat
    seed: int
    every: int

    def record(self) -> dict[str, Any]:
        """All settings as plain values, for the state of a simulation."""
        return asdict(self)


def make_integrator(
    atoms: Atoms, settings: Settings, rng: np.random.Generator
) -> VelocityVerlet | LangevinBAOAB:
    """The integrator of an ensemble.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure, with calculator and velocities.
    settings : Settings
        Ensemble, time step, temperature and coupling.
    rng : Generator
        Source of the random forces.
    """
    dt = settings.timestep * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, dt)
    barostat: dict[str, float] = {}
    if settings.ensemble == "npt":
        assert settings.temperature is not None  # checked before
        tau = settings.barostat.time * units.fs
        barostat = {
            "externalstress": -settings.barostat.pressure * units.bar,
            "P_tau": tau,
            # W = (3 N + 3) k T τ^2 (Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177, 1994)
            "P_mass": (3 * len(atoms) + 3) * units.kB * settings.temperature * tau**2,
        }
    return LangevinBAOAB(
        atoms,
        dt,
        temperature_K=settings.temperature,
        T_tau=units.fs / settings.thermostat.friction,
        rng=rng,
        hydrostatic=True,
        **barostat,
    )


def draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator, *, still: bool) -> int:
    """Set velocities of the Maxwell-Boltzmann distribution.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure; its momenta are replaced.
    temperature : float
        Temperature in K.
    rng : Generator
        Source of random numbers.
    still : bool
        Remove the drift of the whole and, without a lattice, its rotation; then scale the velocities, so that
        the kinetic energy is exactly that of the temperature. Structures with constraints are left as drawn.

    Returns
    -------
    int
        Number of degrees of freedom that were removed.
    """
    masses = atoms.get_masses()
    atoms.set_momenta(
        rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)[:, None]
    )
    if not still or atoms.constraints:
        return 0
    velocities = atoms.get_velocities()
    velocities -= masses @ velocities / masses.sum()
    removed = 3
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        outer = arms[:, :, None] * arms[:, None, :]
        inertia = np.einsum("n,nij->ij", masses, (arms**2).sum(1)[:, None, None] * np.eye(3) - outer)
        momentum = np.cross(arms, masses[:, None] * velocities).sum(0)
        # Pseudo-inverse: a line of atoms does not turn about itself, one atom not at all.
        velocities -= np.cross(np.linalg.pinv(inertia, rcond=1e-8) @ momentum, arms)
        size = max(float(np.linalg.norm(inertia)), 1e-8)
        removed += int(np.linalg.matrix_rank(inertia, tol=1e-8 * size))
    atoms.set_velocities(velocities)
    freedom, energy = 3 * len(atoms) - removed, atoms.get_kinetic_energy()
    wanted = freedom * units.kB * temperature / 2
    atoms.set_momenta(
        atoms.get_momenta() * (math.sqrt(wanted / energy) if freedom > 0 and energy > 0 else 0.0)
    )
    return removed

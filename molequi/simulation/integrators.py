"""Integrators of ASE, and velocities to begin with."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import (
    MTKNPT,
    IsotropicMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet

from molequi.simulation.files import check_entry
from molequi.simulation.options import Barostat, Thermostat

_CHAIN = ("_thermostat._eta", "_thermostat._p_eta")
_PISTON_CHAIN = ("_barostat._xi", "_barostat._p_xi")
# Attributes of each integrator that change during the dynamics, beside those of the atoms. The force on the
# Langevin barostat holds the velocities of half a step ago, so it cannot be computed again.
_STATE: dict[type, tuple[str, ...]] = {
    VelocityVerlet: (),
    LangevinBAOAB: ("p_eps", "force_eps"),
    Bussi: ("transferred_energy",),
    NoseHooverChainNVT: _CHAIN,
    IsotropicMTKNPT: (*_CHAIN, *_PISTON_CHAIN, "_eps", "_p_eps", "_cell0", "_volume0"),
    MTKNPT: (*_CHAIN, *_PISTON_CHAIN, "_p_g"),
}


@dataclass(frozen=True)
class Settings:
    """Settings that decide the trajectory, checked.

    Parameters
    ----------
    ensemble : "nve", "nvt" or "npt"
        The ensemble.
    temperature : float or None
        Temperature in K; None keeps the velocities of the structure.
    timestep : float
        Time step in fs.
    thermostat : Thermostat
        Options of "nvt" and "npt".
    barostat : Barostat
        Options of "npt".
    seed : int
        Seed of velocities and random forces.
    every : int
        Steps between saved frames.
    """

    ensemble: Literal["nve", "nvt", "npt"]
    temperature: float | None
    timestep: float
    thermostat: Thermostat
    barostat: Barostat
    seed: int
    every: int

    def record(self) -> dict[str, Any]:
        """All settings as plain values, for the state of a simulation."""
        return asdict(self)

    @property
    def scales_velocities(self) -> bool:
        """Whether the thermostat scales all velocities alike, so that a total momentum of zero stays zero."""
        return self.ensemble != "nve" and self.thermostat.kind != "langevin"


def make_integrator(
    atoms: Atoms, settings: Settings, rng: np.random.Generator, freedom: int
) -> MolecularDynamics:
    """The integrator of an ensemble.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure, with calculator and velocities.
    settings : Settings
        Ensemble, time step, temperature and coupling.
    rng : Generator
        Source of the random forces.
    freedom : int
        Number of degrees of freedom that have kinetic energy.
    """
    dt, kind = settings.timestep * units.fs, settings.thermostat.kind
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, dt)
    assert settings.temperature is not None  # checked before
    if kind == "langevin":
        return _langevin(atoms, settings, rng)
    time = settings.thermostat.time * units.fs
    if kind == "bussi":
        bussi = Bussi(atoms, dt, temperature_K=settings.temperature, taut=time, rng=rng)
        # ASE counts the total momentum, which is zero and stays zero.
        bussi.ndof = freedom
        bussi.target_kinetic_energy = freedom * units.kB * settings.temperature / 2
        return bussi
    chain: NoseHooverChainNVT | IsotropicMTKNPT | MTKNPT
    if settings.ensemble == "nvt":
        chain = NoseHooverChainNVT(atoms, dt, temperature_K=settings.temperature, tdamp=time)
    else:
        isotropic = settings.barostat.cell == "isotropic"
        chain = (IsotropicMTKNPT if isotropic else MTKNPT)(
            atoms,
            dt,
            temperature_K=settings.temperature,
            pressure_au=settings.barostat.pressure * units.bar,
            tdamp=time,
            pdamp=settings.barostat.time * units.fs,
        )
        chain._num_atoms_global = freedom / 3  # ASE uses a third of the degrees of freedom only
    # Here too ASE counts the total momentum. At the start nothing but the mass of the chain depends on it.
    chain._thermostat = NoseHooverChainThermostat(
        freedom / 3,  # type: ignore[arg-type]  # any number, see above
        masses=chain.masses,
        temperature_K=settings.temperature,
        tdamp=time,
    )
    return chain


def _langevin(atoms: Atoms, settings: Settings, rng: np.random.Generator) -> LangevinBAOAB:
    """Langevin dynamics at constant volume or, with a Langevin barostat, at constant pressure."""
    barostat: dict[str, float] = {}
    assert settings.temperature is not None
    if settings.ensemble == "npt":
        tau = settings.barostat.time * units.fs
        barostat = {
            "externalstress": -settings.barostat.pressure * units.bar,
            "P_tau": tau,
            # W = (3 N + 3) k T τ^2 (Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177, 1994)
            "P_mass": (3 * len(atoms) + 3) * units.kB * settings.temperature * tau**2,
        }
    return LangevinBAOAB(
        atoms,
        settings.timestep * units.fs,
        temperature_K=settings.temperature,
        T_tau=units.fs / settings.thermostat.friction,
        rng=rng,
        hydrostatic=True,
        **barostat,
    )


def integrator_state(integrator: MolecularDynamics) -> dict[str, np.ndarray]:
    """What an integrator needs to continue beside positions, momenta and cell, by name of the attribute."""
    return {
        path: np.array(reduce(getattr, path.split("."), integrator), dtype=float)
        for path in _STATE[type(integrator)]
        if hasattr(integrator, path.split(".")[0])  # at constant volume there is no barostat
    }


def restore_integrator(integrator: MolecularDynamics, state: Mapping[str, np.ndarray]) -> None:
    """Set an integrator to a saved state.

    Parameters
    ----------
    integrator : ase.md.md.MolecularDynamics
        A new integrator of the same kind.
    state : mapping of str to array
        What `integrator_state` returned, and possibly more.

    Raises
    ------
    KeyError, ValueError
        If a value is missing or damaged.
    """
    for path, now in integrator_state(integrator).items():
        *owners, name = path.split(".")
        value = state[path]
        check_entry(path, value, now.shape)
        setattr(reduce(getattr, owners, integrator), name, value.copy() if value.ndim else float(value))


def conserved_energy(integrator: MolecularDynamics, total: float) -> float | None:
    """The conserved quantity of a thermostat in eV; None if it has none.

    Parameters
    ----------
    integrator : ase.md.md.MolecularDynamics
        The integrator.
    total : float
        Total energy of the atoms in eV.
    """
    # ASE's own sums ask for the free energy, which not every calculator has.
    if isinstance(integrator, Bussi):
        return total - float(integrator.transferred_energy)
    if isinstance(integrator, NoseHooverChainNVT):
        return total + float(integrator._thermostat.get_thermostat_energy())
    if isinstance(integrator, (IsotropicMTKNPT, MTKNPT)):
        momenta = sum(
            np.square(getattr(integrator, name)).sum()
            for name in ("_p_eps", "_p_g")
            if hasattr(integrator, name)
        )
        return float(
            total
            + integrator._thermostat.get_thermostat_energy()
            + integrator._barostat.get_barostat_energy()
            + momenta / (2 * integrator._barostat.W)
            + integrator._pressure_au * integrator.atoms.get_volume()
        )
    return None


def conserves_momentum(atoms: Atoms) -> bool:
    """Whether the forces on a structure add up to zero, as they do without an external field.

    Parameters
    ----------
    atoms : ase.Atoms
        A structure with a calculator. A copy with displaced atoms is calculated, because in a minimum all
        forces are zero, also in a field.
    """
    moved = atoms.copy()
    moved.rattle(0.01, seed=0)
    moved.calc = atoms.calc
    forces = moved.get_forces(apply_constraint=False)
    return bool(np.abs(forces.sum(0)).max() <= 1e-3 * np.abs(forces).sum() + 1e-12)


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

"""Molecular dynamics by ASE's integrators: NVE, Langevin, NPT."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet

from molequi.errors import ConfigError, DataError, MolequiError
from molequi.simulation.inputs import calculator_of, checked, digest, length, properties, structure_of
from molequi.simulation.store import FILES, Store, check, restore
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process


class Drift(NamedTuple):
    """slope: of a straight line through the energies, meV/atom/ps. rms: of what remains around it, meV/atom."""

    slope: float
    rms: float


def drift(times, energies, n_atoms: int) -> Drift:
    """How well a simulation keeps its total energy: times in ps, energies in eV, both (T,), T ≥ 3.

    >>> round(drift([0.0, 1.0, 2.0], [5.0, 5.001, 5.002], n_atoms=2).slope, 9)
    0.5

    Raises DataError for series of other shapes.
    """
    times, energies = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    if times.ndim != 1 or times.shape != energies.shape or len(times) < 3 or n_atoms < 1:
        raise DataError(
            f"times {times.shape}, energies {energies.shape}, {n_atoms} atoms: wanted two series of the same length,"
            " three or more, and at least one atom"
        )
    t, e = (
        times - times.mean(),
        (energies - energies.mean()) * 1e3 / n_atoms,
    )  # centred: total energies are large
    slope = (t @ e) / (t @ t)
    return Drift(float(slope), float(np.sqrt(np.mean((e - slope * t) ** 2))))


@dataclass(frozen=True)
class Dynamics:
    """What `md` leaves. time: ps.

    history: columns of log.csv: step, time_ps, E_pot, E_kin, E_tot (eV), T (K); in a cell volume (Å^3), pressure (bar); of an
    ensemble forces_std (eV/Å), the largest of all atoms.
    """

    atoms: Atoms
    steps: int
    time: float
    ensemble: str
    history: dict[str, np.ndarray]
    out: Path | None

    @property
    def drift(self) -> Drift:
        """Slope and rms of the total energy, meaningful for `ensemble="nve"`."""
        return drift(self.history["time_ps"], self.history["E_tot"], len(self.atoms))

    def __str__(self) -> str:
        second = self.history["T"][len(self.history["T"]) // 2 :]
        text = f"{self.ensemble}: {self.steps} steps, {self.time:g} ps; mean T of the second half {second.mean():.1f} K"
        if self.ensemble == "nve" and len(self.history["time_ps"]) >= 3:
            text += f"; total energy {self.drift.slope:+.2e} meV/atom/ps, rms {self.drift.rms:.2e} meV/atom"
        return text + (f"\n{self.out}: {', '.join(FILES)}" if self.out else "")


def md(
    atoms: Atoms | str | os.PathLike,
    calculator: Any,
    *,
    ensemble: Literal["nve", "langevin", "npt"] = "nve",
    temperature: float | None = 300.0,
    timestep: float = 0.5,
    time: float | None = None,
    steps: int | None = None,
    pressure: float = 1.0,
    friction: float = 0.01,
    barostat_time: float = 1000.0,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    every: int = 20,
    resume: Literal["auto", "restart"] = "auto",
    index: int = 0,
    device: str = "cpu",
    dtype: Literal["float32", "float64"] = "float64",
    accelerate: bool = False,
    max_heating: float = 1e4,
    max_force: float = 1e3,
    max_spread: float | None = None,
    progress: bool = True,
) -> Dynamics:
    """Molecular dynamics of a copy of a structure.

    atoms: a structure, or a file that ASE reads (frame `index`). calculator: any ASE calculator, a Model or its file
    (these two run on `device` in `dtype`, with accelerate=True compiled).
    ensemble: "nve" is velocity Verlet; "langevin" and "npt" are ASE's BAOAB Langevin dynamics (Leimkuhler and Matthews,
    J. Chem. Phys. 138, 174102, 2013), "npt" with the Langevin barostat of Quigley and Probert (J. Chem. Phys. 120,
    11432, 2004), which changes the volume and not the shape. Unlike Berendsen's they sample the ensemble that they
    name, also of small and stiff systems, and unlike chains of thermostats their whole state is a few numbers.
    temperature: K. Velocities are drawn at it, for "nve" without drift and rotation of the whole; None, for "nve" only,
    keeps those given.
    timestep: fs. time: ps, or steps. pressure: bar. friction: 1/fs. barostat_time: fs.
    out: folder of the files, None for none; masses, if not the standard ones, and fixed atoms stand in them.
    every: steps between frames, rows of the log and saved states; a kill loses no more than that.
    resume: "auto" goes on with what is in `out`, also to a longer time, and gives the same trajectory as a run without
    interruption, bit for bit if the calculator answers by the structure alone (compiled models do up to round-off); "restart" begins anew.
    max_heating (K above the temperature), max_force (eV/Å): beyond them it stops, the last good frame in last.xyz.
    max_spread (eV/Å): it also stops where the members of an `Ensemble` differ by more about the force on an atom (forces_std), as they
    do where they were not trained.

    Ctrl-C and SIGTERM end it after the present step, all saved. Raises ConfigError for settings out of range and for
    those that differ from the ones in `out`, DataError for the structure, SimulationError where it explodes,
    CheckpointError for a damaged state, TrainingError if the folder is in use.
    """
    settings = {
        "ensemble": ensemble,
        **checked(
            temperature=temperature,
            timestep=timestep,
            pressure=pressure,
            friction=friction,
            barostat_time=barostat_time,
            seed=seed,
            every=every,
        ),
    }
    checked(
        max_heating=max_heating,
        max_force=max_force,
        **({} if max_spread is None else {"max_spread": max_spread}),
    )
    if ensemble not in ("nve", "langevin", "npt"):
        raise ConfigError(f"ensemble={ensemble!r}: wanted 'nve', 'langevin' or 'npt'")
    if temperature is None and ensemble != "nve":
        raise ConfigError(f"temperature=None: ensemble={ensemble!r} needs one in K")
    total = length(time, steps, timestep)
    atoms = structure_of(atoms, index)
    atoms.calc = calculator_of(calculator, device, dtype, accelerate)
    if max_spread is not None and "forces" not in getattr(getattr(atoms.calc, "model", None), "stds", {}):
        raise ConfigError(
            f"max_spread={max_spread}: the calculator gives no spread of forces; wanted an Ensemble, its file, or a Calculator of one"
        )
    if ensemble == "npt" and not (
        atoms.pbc.all() and atoms.cell.volume > 0 and "stress" in properties(atoms.calc)
    ):
        raise ConfigError(
            f"ensemble='npt' with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a calculator of"
            f" {', '.join(properties(atoms.calc))}: wanted a structure periodic in three directions, and stress"
        )
    if ensemble == "npt" and atoms.constraints:
        kinds = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        raise ConfigError(
            f"ensemble='npt' with {kinds}: the volume would scale what shall stay; wanted a structure without"
            " constraints, remove them with atoms.set_constraint() or choose 'langevin'"
        )
    settings["structure"] = digest(atoms, with_momenta=temperature is None)
    rng = np.random.default_rng(seed)
    freedom = atoms.get_number_of_degrees_of_freedom()
    if temperature is not None:
        freedom -= _draw_velocities(atoms, temperature, rng, still=ensemble == "nve")
    kelvin = 2 / units.kB / max(freedom, 1)  # temperature per kinetic energy
    hottest = max_heating + (atoms.get_kinetic_energy() * kelvin if temperature is None else temperature)

    with Store(out, {"what": "md", **settings}, resume) as store:
        state = store.state
        step = 0 if state is None else int(state["step"])
        if state is not None:
            restore(atoms, state)
            rng.bit_generator.state = json.loads(str(state["rng"]))
        check(store, None, atoms, step, max_force, hottest, kelvin, max_spread)
        integrator = _integrator(atoms, settings, rng)
        if state is not None and ensemble == "npt":
            # The force on the barostat holds the velocities of half a step ago, so it cannot be computed again.
            integrator.p_eps, integrator.force_eps = float(state["p_eps"]), float(state["force_eps"])

        def save() -> None:
            barostat = (
                {name: getattr(integrator, name) for name in ("p_eps", "force_eps")}
                if ensemble == "npt"
                else {}
            )
            store.save(atoms, step, rng=json.dumps(rng.bit_generator.state), **barostat)

        if state is None:
            store.record(atoms, _row(atoms, step, timestep, kelvin))
            save()
        with (
            ProgressBar("md", total, show=progress, start=step, keep=True) as bar,
            catch_signals() as received,
        ):
            while step < total and not received:
                good = atoms.copy()
                try:
                    integrator.step()
                except MolequiError as error:
                    raise store.stopped(good, step, f"step {step + 1}: {error}") from error
                step += 1
                check(store, good, atoms, step, max_force, hottest, kelvin, max_spread)
                if step % every == 0:
                    store.record(atoms, _row(atoms, step, timestep, kelvin))
                    save()
                    bar.update(step, f"T {store.rows[-1]['T']:.0f} K, E_tot {store.rows[-1]['E_tot']:.4f} eV")
            if step % every:
                save()
            store.last(atoms, step)
        if received:
            stop_process(received)
    return Dynamics(atoms, step, step * timestep / 1e3, ensemble, store.history, store.out)


def _row(atoms: Atoms, step: int, timestep: float, kelvin: float) -> dict[str, float]:
    """A row of the log."""
    potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
    row = {
        "step": step,
        "time_ps": step * timestep / 1e3,
        "E_pot": potential,
        "E_kin": kinetic,
        "E_tot": potential + kinetic,
        "T": kinetic * kelvin,
    }
    if "forces_std" in getattr(atoms.calc, "results", {}):
        row["forces_std"] = float(atoms.calc.results["forces_std"].max())
    if atoms.pbc.all():
        row["volume"] = float(atoms.cell.volume)
        if "stress" in properties(atoms.calc):
            row["pressure"] = float(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.bar)
    return row


def _integrator(atoms: Atoms, settings: Mapping[str, Any], rng: np.random.Generator):
    dt = settings["timestep"] * units.fs
    if settings["ensemble"] == "nve":
        return VelocityVerlet(atoms, dt)
    barostat: dict[str, Any] = {}
    if settings["ensemble"] == "npt":
        tau = settings["barostat_time"] * units.fs
        barostat = {
            "externalstress": -settings["pressure"] * units.bar,
            "P_tau": tau,
            # W = (3 N + 3) k T τ^2 (Martyna, Tobias and Klein, J. Chem. Phys. 101, 4177, 1994)
            "P_mass": (3 * len(atoms) + 3) * units.kB * settings["temperature"] * tau**2,
        }
    return LangevinBAOAB(
        atoms,
        dt,
        temperature_K=settings["temperature"],
        T_tau=units.fs / settings["friction"],
        rng=rng,
        hydrostatic=True,
        **barostat,
    )


def _draw_velocities(atoms: Atoms, temperature: float, rng: np.random.Generator, *, still: bool) -> int:
    """Maxwell's velocities. If `still`, the whole neither drifts nor, without a lattice, turns, and the kinetic energy
    is that of the temperature. Returns the number of degrees of freedom that were stilled.
    """
    masses = atoms.get_masses()
    atoms.set_momenta(
        rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)[:, None]
    )
    if not still or atoms.constraints:
        return 0
    velocities = atoms.get_velocities()
    velocities -= masses @ velocities / masses.sum()
    stilled = 3
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        outer = arms[:, :, None] * arms[:, None, :]
        inertia = np.einsum("n,nij->ij", masses, (arms**2).sum(1)[:, None, None] * np.eye(3) - outer)
        momentum = np.cross(arms, masses[:, None] * velocities).sum(0)
        # Pseudo-inverse: a line of atoms does not turn about itself, one atom not at all.
        velocities -= np.cross(np.linalg.pinv(inertia, rcond=1e-8) @ momentum, arms)
        stilled += int(np.linalg.matrix_rank(inertia, tol=1e-8 * max(np.linalg.norm(inertia), 1e-8)))
    atoms.set_velocities(velocities)
    freedom, energy = 3 * len(atoms) - stilled, atoms.get_kinetic_energy()
    wanted = freedom * units.kB * temperature / 2
    atoms.set_momenta(
        atoms.get_momenta() * (math.sqrt(wanted / energy) if freedom > 0 and energy > 0 else 0.0)
    )
    return stilled

"""Molecular dynamics by ASE's integrators: NVE, Langevin, NPT."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, DataError, MolequiError
from molequi.model import Model
from molequi.simulation.bounds import Bounds, forces_std
from molequi.simulation.files import FILES, SimulationFiles, restore_atoms
from molequi.simulation.inputs import (
    RENAMED,
    Structure,
    as_calculator,
    checked_numbers,
    number_of_steps,
    properties_of,
    read_structure,
    structure_digest,
)
from molequi.simulation.integrators import Settings, draw_velocities, make_integrator
from molequi.simulation.options import Barostat, Limits, Thermostat
from molequi.util.options import as_options
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.signature import check_keywords

_BAROSTAT_STATE = ("p_eps", "force_eps")  # attributes of ASE's integrator that a state must hold
# Keyword arguments of `md` in an earlier version.
_RENAMED = RENAMED | {
    "friction": "thermostat=mq.Thermostat(friction=…)",
    "pressure": "barostat=mq.Barostat(pressure=…)",
    "barostat_time": "barostat=mq.Barostat(time=…)",
    "max_heating": "limits=mq.Limits(max_heating=…)",
    "max_force": "limits=mq.Limits(max_force=…)",
    "max_spread": "limits=mq.Limits(max_std=…)",
}


class Drift(NamedTuple):
    """How well a simulation conserves its total energy.

    Parameters
    ----------
    slope : float
        Slope of a straight line through the energies, in meV/atom/ps.
    rms : float
        Root mean square deviation of the energies from that line, in meV/atom.
    """

    slope: float
    rms: float


def drift(times: Sequence[float] | np.ndarray, energies: Sequence[float] | np.ndarray, n_atoms: int) -> Drift:
    """Slope and fluctuation of the total energy of a simulation.

    Parameters
    ----------
    times : array, shape (T,), T >= 3
        Times in ps.
    energies : array, shape (T,)
        Total energies in eV.
    n_atoms : int
        Number of atoms.

    Returns
    -------
    Drift
        ``slope`` in meV/atom/ps and ``rms`` around the line in meV/atom.

    Raises
    ------
    DataError
        If the series have different lengths or fewer than three points, or if there is no atom.

    Examples
    --------
    >>> round(drift([0.0, 1.0, 2.0], [5.0, 5.001, 5.002], n_atoms=2).slope, 9)
    0.5
    """
    t, e = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    if t.ndim != 1 or t.shape != e.shape or len(t) < 3 or n_atoms < 1:
        raise DataError(
            f"times {t.shape}, energies {e.shape}, {n_atoms} atoms: wanted two series of the same length, "
            "three or more, and at least one atom"
        )
    # Total energies are large, so both series are centred.
    t, e = t - t.mean(), (e - e.mean()) * 1e3 / n_atoms
    slope = (t @ e) / (t @ t)
    return Drift(float(slope), float(np.sqrt(np.mean((e - slope * t) ** 2))))


@dataclass(frozen=True)
class Dynamics:
    """Result of `md`; printed, a summary.

    Parameters
    ----------
    atoms : ase.Atoms
        The last frame, with velocities and calculator.
    steps : int
        Number of steps, those of earlier calls included.
    time : float
        Simulated time in ps.
    ensemble : str
        The ensemble.
    history : dict of str to array
        Columns of ``log.csv``: ``step``, ``time_ps``, ``E_pot``, ``E_kin``, ``E_tot`` (eV), ``T`` (K). A
        structure that is periodic in three directions has ``volume`` (Å³) and ``pressure`` (bar), and an
        `Ensemble` has ``forces_std`` (eV/Å), the largest of all atoms.
    out : Path or None
        Folder of the files.
    """

    atoms: Atoms
    steps: int
    time: float
    ensemble: str
    history: dict[str, np.ndarray]
    out: Path | None

    @property
    def drift(self) -> Drift:
        """Slope and fluctuation of the total energy, which ``ensemble="nve"`` should conserve."""
        return drift(self.history["time_ps"], self.history["E_tot"], len(self.atoms))

    def __str__(self) -> str:
        second = self.history["T"][len(self.history["T"]) // 2 :]
        text = (
            f"{self.ensemble}: {self.steps} steps, {self.time:g} ps; mean T of the second half "
            f"{second.mean():.1f} K"
        )
        if self.ensemble == "nve" and len(self.history["time_ps"]) >= 3:
            text += f"; total energy {self.drift.slope:+.2e} meV/atom/ps, rms {self.drift.rms:.2e} meV/atom"
        return text + (f"\n{self.out}: {', '.join(FILES)}" if self.out else "")


@check_keywords(_RENAMED)
def md(
    atoms: Structure,
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    ensemble: Literal["nve", "langevin", "npt"] = "nve",
    temperature: float | None = 300.0,
    timestep: float = 0.5,
    time: float | None = None,
    steps: int | None = None,
    thermostat: Thermostat | Mapping[str, Any] = Thermostat(),
    barostat: Barostat | Mapping[str, Any] = Barostat(),
    limits: Limits | Mapping[str, Any] = Limits(),
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    every: int = 20,
    resume: Literal["auto", "restart"] = "auto",
    progress: bool = True,
) -> Dynamics:
    """Molecular dynamics with a model or any other ASE calculator.

    The structure is copied. Ctrl-C and SIGTERM end the simulation after the present step, and everything is
    saved.

    Parameters
    ----------
    atoms : ase.Atoms, str or Path
        A structure, or a file that ASE reads: its first frame, or with ``"frames.xyz@3"`` that frame.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces. A model or its file runs in float64, on CUDA if this machine has
        it; for another device, float32 or compilation use `molequi.Calculator`.
    ensemble : "nve", "langevin" or "npt"
        "nve" conserves the energy (velocity Verlet). "langevin" keeps the temperature, which is NVT. "npt"
        keeps temperature and pressure; the volume changes and the shape of the cell does not. "langevin" and
        "npt" are ASE's BAOAB Langevin dynamics (Leimkuhler and Matthews, J. Chem. Phys. 138, 174102, 2013),
        "npt" with the Langevin barostat of Quigley and Probert (J. Chem. Phys. 120, 11432, 2004). Unlike
        Berendsen's methods they sample the ensemble that they name, also for small and stiff systems.
    temperature : float or None
        Temperature in K. The first velocities are drawn at it, for "nve" without drift and rotation of the
        whole. None, for "nve" only, keeps the velocities of the structure.
    timestep : float
        Time step in fs.
    time : float, optional
        Length in ps, earlier calls included. Give this or `steps`.
    steps : int, optional
        Length in steps, earlier calls included.
    thermostat : Thermostat or mapping
        Friction of "langevin" and "npt".
    barostat : Barostat or mapping
        Pressure and time constant of "npt".
    limits : Limits or mapping
        Temperature, force and uncertainty that stop the simulation. Only the limits of forces and temperature
        are on by default.
    seed : int
        Seed of velocities and random forces.
    out : str or Path, optional
        Folder of the files; None writes nothing. Masses that are not the standard ones and fixed atoms are
        written, too.
    every : int
        Steps between frames, rows of the log and saved states. A kill loses no more than that.
    resume : "auto" or "restart"
        "auto" continues the simulation in `out`, also to a longer time. The trajectory is the one without
        interruption, bit for bit if the calculator depends on the structure alone (compiled models: up to
        round-off). "restart" begins anew.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Dynamics
        The last frame and the log.

    Raises
    ------
    ConfigError
        For settings that are out of range, or that differ from those of the simulation in `out`.
    UnknownKeywordError
        For an argument that `md` does not have; it names the right one.
    DataError
        If the structure cannot be read.
    SimulationError
        If a limit is exceeded or a number is not finite. ``error.last_good`` is the last good frame, and so
        is ``last.xyz``.
    CheckpointError
        If the saved state is damaged.
    TrainingError
        If another process uses the folder.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.emt import EMT
    >>> pair = Atoms("Cu2", [[0, 0, 0], [2.3, 0, 0]])
    >>> run = md(
    ...     pair, EMT(), ensemble="langevin", thermostat=Thermostat(friction=0.02), steps=40, progress=False
    ... )
    >>> run.steps, run.history["step"].tolist()
    (40, [0, 20, 40])
    """
    settings = _checked_settings(ensemble, temperature, timestep, thermostat, barostat, seed, every)
    limits = as_options(Limits, limits, "md.limits")
    total = number_of_steps(time, steps, settings.timestep)
    frame = read_structure(atoms)
    frame.calc = as_calculator(calculator)
    _check_calculator(frame, settings, limits)
    digest = structure_digest(frame, with_momenta=temperature is None)
    rng = np.random.default_rng(settings.seed)
    freedom = frame.get_number_of_degrees_of_freedom()
    if settings.temperature is not None:
        freedom -= draw_velocities(frame, settings.temperature, rng, still=ensemble == "nve")
    kelvin = 2 / units.kB / max(freedom, 1)
    start = frame.get_kinetic_energy() * kelvin if settings.temperature is None else settings.temperature
    bounds = Bounds(limits.max_force, limits.max_heating + start, kelvin, limits.max_std)
    record = {"what": "md", **settings.record(), "structure": digest}
    with SimulationFiles(out, record, resume) as files:
        run = _Run(frame, settings, bounds, rng, files)
        received = run.advance(total, progress)
        if received:
            stop_process(received)
    return Dynamics(frame, run.step, run.time, ensemble, files.history, files.out)


class _Run:
    """A simulation that advances step by step, from its start or from the state in its folder."""

    def __init__(
        self,
        atoms: Atoms,
        settings: Settings,
        bounds: Bounds,
        rng: np.random.Generator,
        files: SimulationFiles,
    ) -> None:
        self.atoms, self.settings, self.bounds, self.rng, self.files = atoms, settings, bounds, rng, files
        state = files.state
        self.step = 0 if state is None else int(state["step"])
        if state is not None:
            restore_atoms(atoms, state)
            rng.bit_generator.state = json.loads(str(state["rng"]))
        files.check_frame(atoms, self.step, bounds)
        self.integrator = make_integrator(atoms, settings, rng)
        if state is None:
            self.save_frame()
        elif settings.ensemble == "npt":
            # The force on the barostat holds the velocities of half a step ago, so it cannot be computed
            # again.
            for name in _BAROSTAT_STATE:
                setattr(self.integrator, name, float(state[name]))

    @property
    def time(self) -> float:
        """Simulated time in ps."""
        return self.step * self.settings.timestep / 1e3

    def advance(self, total: int, progress: bool) -> list[int]:
        """Run to a number of steps. Returns the signals that ended it before."""
        files, every = self.files, self.settings.every
        with (
            ProgressBar("md", total, show=progress, start=self.step, keep=True) as bar,
            catch_signals() as received,
        ):
            while self.step < total and not received:
                good = self.atoms.copy()
                try:
                    self.integrator.step()
                except MolequiError as error:
                    raise files.explosion(good, self.step, f"step {self.step + 1}: {error}") from error
                self.step += 1
                files.check_frame(self.atoms, self.step, self.bounds, good)
                if self.step % every == 0:
                    self.save_frame()
                    row = files.rows[-1]
                    bar.update(self.step, f"T {row['T']:.0f} K, E_tot {row['E_tot']:.4f} eV")
            if self.step % every:
                self.save_state()
            files.save_last_frame(self.atoms, self.step)
        return received

    def save_frame(self) -> None:
        """Append a frame and a row of the log, and save the state."""
        self.files.append(self.atoms, self._row())
        self.save_state()

    def save_state(self) -> None:
        """Save what is needed to continue."""
        npt = self.settings.ensemble == "npt"
        barostat = {name: getattr(self.integrator, name) for name in (_BAROSTAT_STATE if npt else ())}
        rng = json.dumps(self.rng.bit_generator.state)
        self.files.save_state(self.atoms, self.step, rng=rng, **barostat)

    def _row(self) -> dict[str, float]:
        """A row of the log."""
        atoms = self.atoms
        potential, kinetic = float(atoms.get_potential_energy()), float(atoms.get_kinetic_energy())
        row = {
            "step": self.step,
            "time_ps": self.time,
            "E_pot": potential,
            "E_kin": kinetic,
            "E_tot": potential + kinetic,
            "T": kinetic * self.bounds.kelvin,
        }
        std = forces_std(atoms.calc)
        if std is not None:
            row["forces_std"] = float(std.max())
        if atoms.pbc.all():
            row["volume"] = float(atoms.cell.volume)
            if "stress" in properties_of(atoms.calc):
                row["pressure"] = float(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.bar)
        return row


def _checked_settings(
    ensemble: Literal["nve", "langevin", "npt"],
    temperature: float | None,
    timestep: float,
    thermostat: Thermostat | Mapping[str, Any],
    barostat: Barostat | Mapping[str, Any],
    seed: int,
    every: int,
) -> Settings:
    """The settings of a trajectory. Raises ConfigError for what is out of range."""
    numbers = checked_numbers(temperature=temperature, timestep=timestep, seed=seed, every=every)
    if ensemble not in ("nve", "langevin", "npt"):
        raise ConfigError(
            f"ensemble={ensemble!r}: wanted 'nve' (constant energy), 'langevin' (constant temperature, NVT) "
            "or 'npt' (constant temperature and pressure)"
        )
    if temperature is None and ensemble != "nve":
        raise ConfigError(f"temperature=None: ensemble={ensemble!r} needs one in K")
    if ensemble == "npt" and temperature == 0:
        raise ConfigError("temperature=0: ensemble='npt' needs a temperature above zero; take ensemble='nve'")
    bath = as_options(Thermostat, thermostat, "md.thermostat")
    piston = as_options(Barostat, barostat, "md.barostat")
    if ensemble == "nve" and bath != Thermostat():
        raise ConfigError(
            f"ensemble='nve' with {bath}: constant energy has no thermostat; leave thermostat out, or take "
            "ensemble='langevin'"
        )
    if ensemble != "npt" and piston != Barostat():
        raise ConfigError(
            f"ensemble={ensemble!r} with {piston}: the volume is constant; leave barostat out, or take "
            "ensemble='npt'"
        )
    return Settings(ensemble=ensemble, thermostat=bath, barostat=piston, **numbers)


def _check_calculator(atoms: Atoms, settings: Settings, limits: Limits) -> None:
    """Raise ConfigError if the ensemble or a limit needs what the calculator or the structure lacks."""
    stds = getattr(getattr(atoms.calc, "model", None), "stds", {})
    if limits.max_std is not None and "forces" not in stds:
        raise ConfigError(
            f"limits.max_std={limits.max_std:g}: the calculator gives no standard deviation of the forces; "
            "wanted an Ensemble, its file, or a Calculator of one"
        )
    if settings.ensemble != "npt":
        return
    known = properties_of(atoms.calc)
    if not (atoms.pbc.all() and atoms.cell.volume > 0 and "stress" in known):
        raise ConfigError(
            f"ensemble='npt' with pbc={atoms.pbc.tolist()}, a cell of {atoms.cell.volume:g} Å^3 and a "
            f"calculator of {', '.join(known)}: wanted a structure periodic in three directions, and stress"
        )
    if atoms.constraints:
        kinds = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        raise ConfigError(
            f"ensemble='npt' with {kinds}: a change of the volume would move constrained atoms; wanted a "
            "structure without constraints, remove them with atoms.set_constraint() or choose 'langevin'"
        )

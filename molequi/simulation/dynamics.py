"""Molecular dynamics by ASE's integrators: NVE, NVT and NPT."""

import json
import os
import time as clock
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator

from molequi.ensemble import Ensemble
from molequi.errors import DataWarning, MolequiError
from molequi.model import Model
from molequi.simulation.bounds import Bounds, forces_std
from molequi.simulation.checks import check_ensemble, checked_settings
from molequi.simulation.files import SimulationFiles, restore_atoms, whole
from molequi.simulation.guard import Guard, Watch
from molequi.simulation.inputs import (
    RENAMED,
    Structure,
    as_calculator,
    check_energy,
    degrees_of_freedom,
    number_of_steps,
    properties_of,
    read_structure,
    structure_digest,
)
from molequi.simulation.integrators import (
    Settings,
    conserved_energy,
    draw_velocities,
    integrator_state,
    make_integrator,
    restore_integrator,
)
from molequi.simulation.known import warn_of_energy
from molequi.simulation.options import Barostat, Limits, Thermostat
from molequi.simulation.results import Dynamics
from molequi.util.options import as_options
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.signature import check_keywords

_SECONDS_PER_DAY = 86400.0
# Keyword arguments of `md` in an earlier version, and of `md_many`.
_RENAMED = RENAMED | {
    "friction": "thermostat=mq.Thermostat(friction=…)",
    "pressure": "barostat=mq.Barostat(pressure=…)",
    "barostat_time": "barostat=mq.Barostat(time=…)",
    "max_heating": "limits=mq.Limits(max_heating=…)",
    "max_force": "limits=mq.Limits(max_force=…)",
    "max_spread": "limits=mq.Limits(max_std=…)",
    "replicas": "mq.md_many(atoms, calculator, replicas=…)",
}


@check_keywords(_RENAMED)
def md(
    atoms: Structure,
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    ensemble: Literal["nve", "nvt", "npt", "langevin"] = "nve",
    temperature: float | None = 300.0,
    timestep: float = 0.5,
    time: float | None = None,
    steps: int | None = None,
    thermostat: Thermostat | Mapping[str, Any] | str = Thermostat(),
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
    ensemble : "nve", "nvt", "npt" or "langevin"
        What is kept: energy, temperature, or temperature and pressure. "nve" is velocity Verlet. "nvt" takes
        the thermostat that `thermostat` names. "npt" has a barostat too: with the thermostat "langevin" the
        Langevin barostat of Quigley and Probert (J. Chem. Phys. 120, 11432, 2004), with "nose-hoover" that of
        Martyna, Tobias and Klein (J. Chem. Phys. 101, 4177, 1994). Unlike Berendsen's methods they sample the
        ensemble that they name. "langevin" is "nvt" with the thermostat "langevin".
    temperature : float or None
        Temperature in K. The first velocities are drawn at it. For "nve" and for the thermostats "bussi" and
        "nose-hoover" they have no drift and no rotation of the whole, which these would keep. None, for "nve"
        only, keeps the velocities of the structure.
    timestep : float
        Time step in fs.
    time : float, optional
        Length in ps, earlier calls included. Give this or `steps`.
    steps : int, optional
        Length in steps, earlier calls included.
    thermostat : Thermostat, mapping or str
        Kind and time constant of the thermostat of "nvt" and "npt": "langevin", "bussi" or "nose-hoover".
    barostat : Barostat or mapping
        Pressure, time constant and shape ("isotropic" or "anisotropic") of "npt".
    limits : Limits or mapping
        Temperature, force and uncertainty that stop the simulation, and a guard that also writes the frames
        to label into ``to_label.xyz`` in `out`, see `Limits`. Only the limits of forces and temperature
        are on by default.
    seed : int
        Seed of velocities and random forces.
    out : str or Path, optional
        Folder of the files; None writes nothing. The trajectory has positions, velocities, energy and forces,
        and whatever else the model predicts, such as dipole and charges. Masses that are not the standard
        ones and fixed atoms are written, too.
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
        The last frame, the log, averages with statistical errors and ns/day.

    Raises
    ------
    ConfigError
        For settings that are out of range or that differ from those of the simulation in `out`, and for a
        model without an energy.
    UnknownKeywordError
        For an argument that `md` does not have; it names the right one.
    DataError
        If the structure cannot be read.
    SimulationError
        If a limit is exceeded or a number is not finite. ``error.last_good`` is the last good frame, and so
        is ``last.xyz``. With a guard, ``error.to_label`` are the frames to label.
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
    ...     pair, EMT(), ensemble="nvt", thermostat=Thermostat(friction=0.02), steps=40, progress=False
    ... )
    >>> run.steps, run.history["step"].tolist()
    (40, [0, 20, 40])
    """
    settings = checked_settings(ensemble, temperature, timestep, thermostat, barostat, seed, every)
    limits = as_options(Limits, limits, "md.limits")
    total = number_of_steps(time, steps, settings.timestep)
    frame = read_structure(atoms)
    frame.calc = as_calculator(calculator)
    check_energy(frame.calc)
    watched = None if limits.guard is None else as_options(Guard, limits.guard, "md.limits.guard")
    with Simulation(frame, settings, limits, out, resume, watched) as run:
        received = run.advance(total, progress)
        if received:
            stop_process(received)
        return run.result()


class Simulation:
    """A simulation that advances step by step, from its start or from the state in its folder.

    Parameters
    ----------
    atoms : ase.Atoms
        The structure with a calculator; it is changed.
    settings : Settings
        What decides the trajectory.
    limits : Limits
        What stops it.
    out : str, Path or None
        Folder of the files.
    resume : "auto" or "restart"
        Continue from the state in the folder, or begin anew.
    guard : Guard, optional
        Watches the uncertainty of the forces.
    """

    def __init__(
        self,
        atoms: Atoms,
        settings: Settings,
        limits: Limits,
        out: str | os.PathLike[str] | None,
        resume: str,
        guard: Guard | None = None,
    ) -> None:
        self.watch = None
        if guard is not None:
            assert atoms.calc is not None
            self.watch = Watch(guard, atoms.calc, None if out is None else Path(out))
            if limits.max_std is None:
                atoms.calc = self.watch.drives
        still = check_ensemble(atoms, settings, limits)
        digest = structure_digest(atoms, with_momenta=settings.temperature is None)
        self.atoms, self.settings = atoms, settings
        self.rng = np.random.default_rng(settings.seed)
        self.freedom = degrees_of_freedom(atoms)
        if settings.temperature is not None:
            self.freedom -= draw_velocities(atoms, settings.temperature, self.rng, still=still)
        kelvin = 2 / units.kB / max(self.freedom, 1)
        wanted = settings.temperature
        start = atoms.get_kinetic_energy() * kelvin if wanted is None else wanted
        self.bounds = Bounds(limits.max_force, limits.max_heating + start, kelvin, limits.max_std)
        self.files = SimulationFiles(out, {"what": "md", **settings.record(), "structure": digest}, resume)
        self.step, self._done, self._seconds = 0, 0, 0.0
        self.warned = False  # of energies below those of the training data

    def __enter__(self) -> "Simulation":
        with ExitStack() as stack:
            stack.enter_context(self.files)
            state = self.files.state
            self.step = 0 if state is None else int(state["step"])
            if state is not None:
                restore_atoms(self.atoms, state, self.files.path)
                with whole(self.files.path):
                    self.rng.bit_generator.state = json.loads(str(state["rng"]))
            self.files.check_frame(self.atoms, self.step, self.bounds)
            if self.watch is not None:
                self.watch.resume(None if state is None else self.step)
            if state is None:
                self._warn_of_rest()  # the integrator adds momenta of zero
                with nullcontext() if self.watch is None else self.watch.frames_on_failure():
                    self._look(None)
            self.integrator = make_integrator(self.atoms, self.settings, self.rng, self.freedom)
            if state is None:
                self._save_frame()
            else:
                with whole(self.files.path):
                    restore_integrator(self.integrator, state)
            stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self.files.__exit__(*error)

    @property
    def time(self) -> float:
        """Simulated time in ps."""
        return self.step * self.settings.timestep / 1e3

    @property
    def ns_per_day(self) -> float | None:
        """Simulated nanoseconds per day of this process so far; None before the first step."""
        if not self._done or self._seconds <= 0:
            return None
        return self._done * self.settings.timestep * 1e-6 * _SECONDS_PER_DAY / self._seconds

    def _warn_of_rest(self) -> None:
        """Warn (DataWarning) if the velocities of the structure are kept and it has none."""
        if self.settings.temperature is None and not self.atoms.has("momenta"):
            warnings.warn(
                "temperature=None keeps the velocities of the structure, which has none: the simulation "
                "starts at 0 K; give a temperature in K to draw them",
                DataWarning,
                stacklevel=4,
            )

    def advance(self, total: int, progress: bool) -> list[int]:
        """Run to a number of steps, with a progress bar; then save.

        Parameters
        ----------
        total : int
            The number of steps, those of earlier calls included.
        progress : bool
            Show the bar.

        Returns
        -------
        list of int
            The signals that ended it before.
        """
        with (
            ProgressBar("md", total, show=progress, start=self.step, keep=True) as bar,
            catch_signals() as received,
        ):
            while self.step < total and not received:
                self.advance_one()
                if self.step % self.settings.every == 0:
                    bar.update(self.step, self.summary())
            self.finish()
        return received

    def advance_one(self) -> None:
        """One step, its checks and, if it is time, its frame.

        Raises
        ------
        SimulationError
            If a limit is exceeded, or if the calculator refuses the structure.
        """
        begun = clock.perf_counter()
        with nullcontext() if self.watch is None else self.watch.frames_on_failure():
            self._advance_one()
        if self.step % self.settings.every == 0:
            self._save_frame()
        self._done, self._seconds = self._done + 1, self._seconds + clock.perf_counter() - begun

    def _advance_one(self) -> None:
        good = self.atoms.copy()
        try:
            self.integrator.step()  # type: ignore[attr-defined]  # all of ASE's integrators have it
        except MolequiError as error:
            raise self.files.explosion(good, self.step, f"step {self.step + 1}: {error}") from error
        self.step += 1
        self.files.check_frame(self.atoms, self.step, self.bounds, good)
        self._look(good)

    def _look(self, last_good: Atoms | None) -> None:
        """Raise SimulationError if the guard stops the simulation."""
        problem = "" if self.watch is None else self.watch.look(self.atoms, self.step, self.time)
        if problem:
            raise self.files.explosion(last_good, self.step - 1, f"step {self.step}: {problem}", unknown=True)

    def summary(self) -> str:
        """Temperature, energy and speed, for a progress bar."""
        row = self.files.rows[-1]
        return f"T {row['T']:.0f} K, E_tot {row['E_tot']:.4f} eV, {self.ns_per_day or 0:.3g} ns/day"

    def finish(self) -> None:
        """Save the state and the last frame."""
        if self.step % self.settings.every:
            self._save_state()
        self.files.save_last_frame(self.atoms, self.step)

    def result(self) -> Dynamics:
        """The last frame and the log."""
        settings, files = self.settings, self.files
        return Dynamics(
            self.atoms,
            self.step,
            self.time,
            settings.ensemble,
            files.history,
            files.out,
            "" if settings.ensemble == "nve" else settings.thermostat.kind,
            settings.temperature,
            self.ns_per_day,
        )

    def _save_frame(self) -> None:
        """Append a frame and a row of the log, and save the state."""
        self.files.append(self.atoms, self._row())
        self._save_state()
        self.warned = self.warned or warn_of_energy(self.atoms, self.time)

    def _save_state(self) -> None:
        """Save what is needed to continue."""
        rng = json.dumps(self.rng.bit_generator.state)
        self.files.save_state(self.atoms, self.step, rng=rng, **integrator_state(self.integrator))

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
        conserved = conserved_energy(self.integrator, potential + kinetic)
        if conserved is not None:
            row["E_conserved"] = conserved
        std = forces_std(atoms.calc)
        if std is not None:
            row["forces_std"] = float(std.max())
        if self.watch is not None:
            row[self.watch.column] = float(self.watch.measure(atoms, self.step).max())
        if atoms.pbc.all():
            row["volume"] = float(atoms.cell.volume)
            if "stress" in properties_of(atoms.calc):
                row["pressure"] = float(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.bar)
        return row

"""Many simulations and relaxations at once: several temperatures, replicas and structures in one batch."""

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, SimulationError, UnknownKeywordError, did_you_mean
from molequi.interfaces.ase import Calculator
from molequi.interfaces.together import Stopped, Together
from molequi.model import Model
from molequi.readers.atoms import read_frames
from molequi.simulation.checks import checked_settings
from molequi.simulation.dynamics import Simulation, md
from molequi.simulation.inputs import (
    Structure,
    as_calculator,
    check_energy,
    number_of_steps,
    read_structure,
)
from molequi.simulation.integrators import Settings
from molequi.simulation.options import Limits
from molequi.simulation.relaxation import Relaxation, Relaxations, relax
from molequi.simulation.results import AVERAGED, Dynamics
from molequi.simulation.statistics import Average
from molequi.util.html import html_heading, html_table, html_text
from molequi.util.options import as_options
from molequi.util.progress import ProgressBar
from molequi.util.signals import catch_signals, stop_process
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

Result = TypeVar("Result")
_OWN = ("atoms", "calculator", "temperature", "seed", "out", "progress")


@dataclass(frozen=True)
class Replicas(Sequence[Dynamics]):
    """Result of `md_many`: the simulations, and averages over those of the same temperature.

    Printed, a table.

    Parameters
    ----------
    runs : tuple of Dynamics
        The result of each simulation, in the order of structures, temperatures and replicas.
    names : tuple of str
        Their names, which are those of their folders: "300K", "300K-1", …
    structures : tuple of int
        Number of the structure of each simulation.
    """

    runs: tuple[Dynamics, ...]
    names: tuple[str, ...]
    structures: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        return self.runs[index]

    def __iter__(self) -> Iterator[Dynamics]:
        return iter(self.runs)

    @property
    def ns_per_day(self) -> float:
        """Simulated nanoseconds per day, of all simulations together."""
        return sum(run.ns_per_day or 0.0 for run in self.runs)

    def averages(self, temperature: float | None, structure: int = 0) -> dict[str, Average]:
        """Averages over the replicas of one temperature, of each column of `Dynamics.averages`.

        The replicas are independent, so the error is that of their mean: the standard deviation of the
        replicas divided by the square root of their number. A single replica keeps its own error.

        Parameters
        ----------
        temperature : float
            The temperature in K.
        structure : int
            Number of the structure, from 0.

        Raises
        ------
        ConfigError
            If no simulation of this structure has this temperature.
        """
        own = [run.averages for run in self._replicas_of(structure, temperature)]
        if not own:
            known = ", ".join(f"{t:g}" for t in sorted({run.temperature or 0.0 for run in self.runs}))
            raise ConfigError(
                f"temperature={temperature!r}, structure={structure!r}: wanted one of {known} K and of the "
                f"{len(set(self.structures))} structures"
            )
        if len(own) == 1:
            return own[0]
        found = {}
        for name in own[0]:
            means = np.array([averages[name].mean for averages in own])
            std = float(means.std(ddof=1))
            found[name] = Average(float(means.mean()), std / len(own) ** 0.5, std, len(own))
        return found

    def _replicas_of(self, structure: int, temperature: float | None) -> list[Dynamics]:
        return [
            run
            for run, own in zip(self.runs, self.structures)
            if own == structure and run.temperature == temperature
        ]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows: the averages of each run, and of the replicas of each temperature."""
        columns = [name for name in AVERAGED if all(name in run.history for run in self.runs)]
        rows = [
            [name, *(str(run.averages[column]) for column in columns), f"{run.ns_per_day or 0:.3g}"]
            for name, run in zip(self.names, self.runs)
        ]
        for k, kelvin in dict.fromkeys(zip(self.structures, (run.temperature for run in self.runs))):
            if len(self._replicas_of(k, kelvin)) > 1:
                mean = self.averages(kelvin, k)
                name = f"mean {k}-{kelvin:g}K" if max(self.structures) else f"mean {kelvin:g}K"
                rows.append([name, *(str(mean[column]) for column in columns), ""])
        return ["run", *(f"{column} ({AVERAGED[column]})" for column in columns), "ns/day"], rows

    def _title(self) -> str:
        return f"{len(self.runs)} simulations, {self.ns_per_day:.3g} ns/day together"

    def _note(self) -> str:
        notes = []
        for kind in ("unknown", "hint"):
            found = {name: getattr(run, kind) for name, run in zip(self.names, self.runs)}
            named = [name for name in found if found[name]]
            notes += [f"note: {', '.join(named)}: {found[named[0]]}"] if named else []
        return "\n".join(notes)

    def __str__(self) -> str:
        return "\n".join(filter(None, [self._title(), *text_table(*self._table()), self._note()]))

    def _repr_html_(self) -> str:
        note = html_text(self._note()) if self._note() else ""
        return html_heading(self._title()) + html_table(*self._table()) + note

    __repr__ = __str__


@dataclass(frozen=True)
class _Plan:
    """One of the simulations of `md_many`."""

    name: str
    structure: int
    atoms: Atoms
    settings: Settings


def md_many(
    atoms: Structure | Sequence[Structure],
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    temperature: float | Sequence[float] = 300.0,
    replicas: int = 1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Replicas:
    """Molecular dynamics at several temperatures, with replicas, of one structure or more.

    All simulations advance together, and a model calculates their structures in one batch. Each is the
    simulation that `molequi.md` makes with its temperature and seed, up to round-off. Another ASE calculator
    than a model calculates one simulation after the other.

    Parameters
    ----------
    atoms : structure, or sequence of structures
        Structures as in `molequi.md`.
    calculator : ASE calculator, Model, Ensemble, str or Path
        As in `molequi.md`.
    temperature : float or sequence of float
        Temperatures in K.
    replicas : int, >= 1
        Number of simulations of each structure at each temperature, with different seeds.
    seed : int
        Seed of the first simulation; the others have the numbers after it.
    out : str or Path, optional
        Folder with a folder of files for each simulation: ``300K``, with replicas ``300K-0``, with several
        structures ``0-300K``.
    progress : bool
        Show a progress bar.
    **kwargs
        Other arguments of `molequi.md`, such as ``ensemble="npt"`` and ``time=10.0``.

    Returns
    -------
    Replicas
        The simulations, in the order of structures, temperatures and replicas.

    Raises
    ------
    SimulationError
        If a simulation exceeds a limit; the others end first, and their files are kept.
    UnknownKeywordError
        For an argument that `molequi.md` does not have.
    ConfigError, DataError, CheckpointError, TrainingError
        As in `molequi.md`.

    Examples
    --------
    >>> from ase.build import molecule
    >>> import molequi as mq
    >>> model = mq.Model(mq.EGNN(elements=["H", "O"], channels=8, layers=1))
    >>> runs = md_many(molecule("H2O"), model, temperature=[30, 60], steps=3, progress=False)
    >>> [run.temperature for run in runs]
    [30.0, 60.0]
    """
    given = _md_options(kwargs)
    plans = _plans(atoms, temperature, replicas, seed, given)
    engine = as_calculator(calculator)
    check_energy(engine)
    limits = as_options(Limits, given["limits"], "md.limits")
    if limits.guard is not None:
        raise ConfigError("md.limits.guard: a guard is of one simulation; leave it out, or take max_std")
    total = number_of_steps(given["time"], given["steps"], plans[0].settings.timestep)
    advanced: list[Simulation] = []

    def task(plan: _Plan, received: Sequence[int]) -> Callable[[BaseCalculator], Dynamics]:
        def simulate(own: BaseCalculator) -> Dynamics:
            frame = plan.atoms.copy()
            frame.calc = own
            folder = None if out is None else Path(out) / plan.name
            with Simulation(frame, plan.settings, limits, folder, given["resume"]) as run:
                advanced.append(run)
                while run.step < total and not received:
                    run.advance_one()
                run.finish()
                return run.result()

        return simulate

    steps = total * len(plans)
    with ProgressBar("md", steps, show=progress, keep=True) as bar, catch_signals() as received:

        def watch() -> bool:
            speed = sum(run.ns_per_day or 0.0 for run in advanced)
            bar.update(sum(run.step for run in advanced), f"{speed:.3g} ns/day together")
            return False  # each simulation ends by itself after its present step

        results = _run(engine, [task(plan, received) for plan in plans], watch)
        watch()
    if received:
        stop_process(received)
    names = tuple(plan.name for plan in plans)
    runs = tuple(_unless_failed(results, names, out))
    return Replicas(runs, names, tuple(plan.structure for plan in plans))


def _plans(
    atoms: Structure | Sequence[Structure],
    temperature: float | Sequence[float],
    replicas: int,
    seed: int,
    given: Mapping[str, Any],
) -> list[_Plan]:
    """All simulations, in the order of structures, temperatures and replicas."""
    alone = isinstance(atoms, (str, os.PathLike, Atoms))
    given_structures: Any = [atoms] if alone else atoms
    structures = [read_structure(one) for one in given_structures]
    kelvins = [temperature] if np.ndim(temperature) == 0 else list(temperature)  # type: ignore[arg-type]
    if not structures:
        raise ConfigError("no structures; wanted one or more")
    if not isinstance(replicas, (int, np.integer)) or isinstance(replicas, bool) or replicas < 1:
        raise ConfigError(f"replicas={replicas!r}: wanted a whole number above zero")
    if len(set(kelvins)) < len(kelvins) or not kelvins:
        raise ConfigError(
            f"temperature={temperature!r}: wanted different temperatures; replicas=… repeats each of them"
        )
    names = ("ensemble", "timestep", "thermostat", "barostat", "every")
    plans: list[_Plan] = []
    for k, structure in enumerate(structures):
        for kelvin in kelvins:
            own = {name: given[name] for name in names} | {"temperature": kelvin}
            for r in range(replicas):
                settings = checked_settings(**own, seed=seed + len(plans))
                parts = [str(k)] * (len(structures) > 1) + [f"{kelvin:g}K"] + [str(r)] * (replicas > 1)
                plans.append(_Plan("-".join(parts), k, structure, settings))
    return plans


@check_keywords()
def relax_many(
    structures: Sequence[Structure] | str | os.PathLike[str],
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    fmax: float = 0.01,
    steps: int = 500,
    cell: bool = False,
    out: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: Literal["auto", "restart"] = "auto",
    progress: bool = True,
) -> Relaxations:
    """Relax many structures at once; a model calculates them in one batch.

    Each relaxation is the one of `molequi.relax`, up to round-off. Structures that have converged leave the
    batch.

    Parameters
    ----------
    structures : sequence of structures, str or Path
        Structures as in `molequi.md`, or a file with several frames.
    calculator : ASE calculator, Model, Ensemble, str or Path
        As in `molequi.md`.
    fmax, steps, cell, every, resume
        As in `molequi.relax`.
    out : str or Path, optional
        Folder with a folder of files for each structure: ``0``, ``1``, ….
    progress : bool
        Show a progress bar.

    Returns
    -------
    Relaxations
        A sequence with one `Relaxation` for each structure, in their order.

    Raises
    ------
    SimulationError
        If an energy or a force is not finite; the others end first.
    ConfigError, DataError, CheckpointError, TrainingError
        As in `molequi.relax`.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.emt import EMT
    >>> pairs = [Atoms("Cu2", [[0, 0, 0], [d, 0, 0]]) for d in (2.4, 2.6)]
    >>> [found.converged for found in relax_many(pairs, EMT(), progress=False)]
    [True, True]
    """
    if isinstance(structures, (str, os.PathLike)):
        frames = _frames_of(structures)
    else:
        frames = [read_structure(one) for one in structures]
    engine = as_calculator(calculator)
    check_energy(engine)
    width = len(str(max(len(frames) - 1, 0)))
    names = tuple(f"{k:0{width}d}" for k in range(len(frames)))
    done: list[str] = []

    def task(name: str, frame: Atoms) -> Callable[[BaseCalculator], Relaxation]:
        def run(own: BaseCalculator) -> Relaxation:
            folder = None if out is None else Path(out) / name
            found = relax(
                frame,
                own,
                fmax=fmax,
                steps=steps,
                cell=cell,
                out=folder,
                every=every,
                resume=resume,
                progress=False,
            )
            done.append(name)
            return found

        return run

    with (
        ProgressBar("relax", len(frames), unit="structure", show=progress, keep=True) as bar,
        catch_signals() as received,
    ):

        def watch() -> bool:
            bar.update(len(done))
            return bool(received)

        results = _run(engine, [task(*one) for one in zip(names, frames)], watch)
        bar.update(len(done))
    if received:
        stop_process(received)
    return Relaxations(tuple(_unless_failed(results, names, out)), names)


def _run(
    engine: BaseCalculator,
    tasks: Sequence[Callable[[BaseCalculator], Result]],
    watch: Callable[[], bool],
) -> list[Result | BaseException]:
    """The results of all tasks: in batches if this is a model, otherwise one after the other."""
    if isinstance(engine, Calculator):
        return Together(engine, tasks, watch).run()
    results: list[Result | BaseException] = []
    for task in tasks:
        try:
            results.append(task(engine))
        except SimulationError as error:
            results.append(error)
        if watch():
            break
    return results


def _unless_failed(
    results: Sequence[Result | BaseException], names: Sequence[str], out: str | os.PathLike[str] | None
) -> list[Result]:
    """The results. Raises the first error, with the name of its simulation."""
    for name, result in zip(names, results):
        if isinstance(result, SimulationError):
            kept = "" if out is None else f"; the other {len(names) - 1} have ended and are in {out}"
            error = SimulationError(f"{name}: {result}{kept}")
            error.last_good = result.last_good
            raise error from result
        if isinstance(result, BaseException) and not isinstance(result, Stopped):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _md_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of `md` with their defaults, but those that `md_many` has itself."""
    parameters = inspect.signature(md).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in _OWN}
    known = [*defaults, *_OWN, "replicas"]
    lines = [
        f"md_many({name}=…): md has no such argument{did_you_mean(name, known)}"
        for name in given
        if name not in defaults
    ]
    if lines:
        raise UnknownKeywordError("\n".join(lines))
    return defaults | dict(given)


def _frames_of(path: str | os.PathLike[str]) -> list[Atoms]:
    """All frames of a file, which may be different structures; or those that the path names."""
    name = os.fspath(path)
    if name.endswith(".safetensors"):
        return [read_structure(name)]  # raises
    return [read_structure(frame) for frame in read_frames(name)]

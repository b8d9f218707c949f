"""Frames of short Langevin dynamics, with energies and forces by the calculator that drives it."""

import hashlib
import io
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import ase.io
import numpy as np
from annotated_types import Ge, Gt
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list

from molequi.data.checks import TOO_CLOSE
from molequi.data.dataset import Dataset
from molequi.domain import totals_taken
from molequi.ensemble import Ensemble
from molequi.errors import (
    CheckpointError,
    ConfigError,
    OtherSettingsError,
    SimulationError,
    SimulationWarning,
)
from molequi.model import Model
from molequi.readers.ase import from_atoms, read_extxyz, to_atoms
from molequi.readers.load import load_dataset
from molequi.simulation.inputs import XTB, as_calculator, check_energy, properties_of
from molequi.simulation.integrators import Settings, draw_velocities, make_integrator
from molequi.simulation.options import Barostat, Thermostat
from molequi.util.files import write_file
from molequi.util.locks import check_unused, lock_folder
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_call, check_keywords
from molequi.util.state_files import differences

FRAMES, STATE = "frames.xyz", "frames.json"
_LONGEST = 50  # frames of one trajectory; an interrupt loses at most those
_FRICTION = 0.02  # 1/fs
_LARGEST = 100.0  # eV/Å, of a force on an atom
_SAME = 1e-3  # eV, between two calculations of one structure by the same calculator


@check_keywords()
def sample_frames(
    structures: Any,
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    frames: Annotated[int, Gt(0)] = 2000,
    temperature: Annotated[float, Gt(0)] = 500.0,
    spacing: Annotated[float, Gt(0)] = 10.0,
    timestep: Annotated[float, Gt(0)] = 1.0,
    seed: Annotated[int, Ge(0)] = 0,
    out: str | os.PathLike[str] | None = None,
    resume: Literal["auto", "restart"] = "auto",
    progress: bool = True,
) -> Dataset:
    """Sample frames by molecular dynamics, labelled by the calculator that drives it.

    Many short trajectories begin at the structures, one after another, each with velocities of its own.
    With a cheap method they make training data for a first training, before the one on few expensive labels;
    with a trained model or an ensemble, data for a smaller model.

    Parameters
    ----------
    structures : Dataset or what `load_dataset` takes
        Structures with elements, in three dimensions. Charge and spin are handed to the calculator as ASE's
        initial charges and magnetic moments. Labels and constraints are not used, nor are single atoms if
        there are larger structures.
    calculator : ASE calculator, Model, Ensemble, str or Path
        What computes energies and forces. ``"gfn2-xtb"`` and ``"gfn1-xtb"`` are the tight-binding methods of
        tblite (``pip install 'molequi[xtb]'``), for crystals with the Γ point only.
    frames : int, > 0
        Number of frames.
    temperature : float, > 0
        Temperature in K.
    spacing : float, > 0
        Time between two frames of a trajectory in fs.
    timestep : float, > 0
        Time step in fs.
    seed : int
        Seed of the starts, velocities and random forces.
    out : str or Path, optional
        Folder of the frames (``frames.xyz``). None writes nothing.
    resume : "auto" or "restart"
        "auto" continues what was interrupted in `out`. "restart" begins anew.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Dataset
        The frames in the order of the trajectories, with energy (eV) and forces (N, 3) (eV/Å), and with the
        stress (3, 3) (eV/Å³) if all structures are periodic in three directions and the calculator has it.

    Raises
    ------
    ConfigError
        For settings out of range, for a calculator without energy or forces, and for a folder with frames of
        other settings or of another calculator.
    MissingPackageError
        If tblite is needed and missing.
    SimulationError
        If the calculator fails in more than half of the trajectories.
    CheckpointError
        If the files in `out` are damaged.

    Warns
    -----
    SimulationWarning
        If the calculator fails in some trajectories, which are then shorter.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> cell = bulk("Cu", cubic=True)
    >>> data = sample_frames([cell], EMT(), frames=3, temperature=300.0, progress=False)
    >>> len(data), sorted(data.quantities)
    (3, ['energy', 'forces', 'stress'])
    """
    settings: dict[str, Any] = {
        "frames": frames,
        "temperature": temperature,
        "spacing": spacing,
        "timestep": timestep,
        "seed": seed,
    }
    check_call(
        sample_frames,
        settings | {"out": out, "resume": resume, "progress": progress},
        where="sample_frames",
        leave_out=("structures", "calculator"),
    )
    settings = {k: int(v) if k in ("frames", "seed") else float(v) for k, v in settings.items()}
    problem = spacing_problem(spacing, timestep)
    if problem:
        raise ConfigError(f"sample_frames: {problem}")
    used = as_calculator(calculator)
    check_energy(used)
    starts = _starts(load_dataset(structures, only=totals_taken(getattr(used, "model", None))))
    plan = _Plan(starts, calculator, settings)
    record = {"calculator": name_of(calculator), "structures": _digest(starts), **settings}
    with (
        _Frames(out, record, resume) as kept,
        ProgressBar("sampling", frames, unit="frame", show=progress) as bar,
    ):
        plan.check_calculator(kept)
        for number in range(len(kept.counts), plan.trajectories):
            found, failure = plan.trajectory(number)
            kept.add(found, failure)
            bar.update(min(frames, (number + 1) * plan.length))
            if len(kept.failures) > plan.trajectories / 2:
                break
        bar.finish()
        plan.judge(kept)
        return kept.dataset()


def spacing_problem(spacing: float, timestep: float) -> str:
    """What is wrong with a time between frames; an empty string if nothing is.

    Parameters
    ----------
    spacing, timestep : float
        Time between two frames, and time step, in fs.

    Examples
    --------
    >>> spacing_problem(10.0, 3.0)
    'spacing=10 fs: wanted a multiple of timestep=3 fs'
    """
    steps = round(spacing / timestep)
    if steps and math.isclose(steps * timestep, spacing, rel_tol=1e-6):
        return ""
    return f"spacing={spacing:g} fs: wanted a multiple of timestep={timestep:g} fs"


def name_of(calculator: object) -> str:
    """How a calculator is called in records: the name of a method, the path of a model, or its class.

    Parameters
    ----------
    calculator : object
        What `sample_frames` takes.

    Examples
    --------
    >>> name_of("GFN2-xTB")
    'gfn2-xtb'
    """
    if isinstance(calculator, str) and _is_method(calculator):
        return calculator.lower()
    if isinstance(calculator, (str, os.PathLike)):
        return os.fspath(calculator)
    return type(calculator).__name__


def _starts(data: Dataset) -> list[Atoms]:
    """The structures as ASE has them, without labels; single atoms only if there is nothing else."""
    found = []
    for graph in [graph for graph in data if graph.num_nodes > 1] or data:
        atoms = to_atoms(graph.replace(targets={}))
        if graph.charge is not None:
            atoms.set_initial_charges(np.full(len(atoms), float(graph.charge) / len(atoms)))
        if graph.spin is not None:
            unpaired = float(graph.spin) - 1  # the spin is a multiplicity
            atoms.set_initial_magnetic_moments(np.full(len(atoms), unpaired / len(atoms)))
        found.append(atoms)
    return found


def _digest(starts: Sequence[Atoms]) -> str:
    out = hashlib.sha256()
    for atoms in starts:
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
            out.update(np.ascontiguousarray(array).tobytes())
        out.update(repr(sorted(atoms.info.items())).encode())
    return out.hexdigest()[:16]


@dataclass(frozen=True)
class _Plan:
    """The trajectories; each is a function of the seed and its number alone."""

    starts: Sequence[Atoms]
    given: Any  # the calculator, its name or a model
    settings: Mapping[str, Any]

    @cached_property
    def calculator(self) -> BaseCalculator:
        """The calculator; one for all trajectories, unless it is given by the name of a method."""
        return as_calculator(self.given)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.settings["frames"])

    @property
    def length(self) -> int:
        """Frames of a trajectory."""
        return min(_LONGEST, math.ceil(self.frames / len(self.starts)))

    @property
    def trajectories(self) -> int:
        """Number of trajectories."""
        return math.ceil(self.frames / self.length)

    def trajectory(self, number: int) -> tuple[list[Atoms], str]:
        """The frames of a trajectory, and why it ended early."""
        seed, temperature, timestep = (self.settings[name] for name in ("seed", "temperature", "timestep"))
        steps = round(self.settings["spacing"] / timestep)
        order = np.random.default_rng(seed).permutation(len(self.starts))
        rng = np.random.default_rng([seed, number])
        atoms = self.starts[order[number % len(order)]].copy()
        draw_velocities(atoms, temperature, rng, still=True)
        # tblite begins with the density of the structure before, so that each trajectory has its own.
        atoms.calc = as_calculator(self.given) if _is_method(self.given) else self.calculator
        settings = Settings(
            "nvt", temperature, timestep, Thermostat(friction=_FRICTION), Barostat(), seed, steps
        )
        wanted = min(self.length, self.frames - number * self.length)
        found: list[Atoms] = []
        try:
            integrator = make_integrator(atoms, settings, rng, 3 * len(atoms))
            while len(found) < wanted:
                integrator.run(steps)
                found.append(self._labelled(atoms))
                found[-1].info["trajectory"] = number
        except Exception as error:  # calculators raise anything
            return found, f"{type(error).__name__}: {' '.join(str(error).split())}"
        return found, ""

    def _labelled(self, atoms: Atoms) -> Atoms:
        """A copy of a structure with its labels. Raises SimulationError for what no molecule has."""
        names = ["energy", "forces"] + ["stress"] * self._with_stress
        values = {name: atoms.calc.get_property(name, atoms) for name in names}
        largest = float(np.abs(values["forces"]).max())
        if not (math.isfinite(float(values["energy"])) and largest < _LARGEST):
            raise SimulationError(f"energy {float(values['energy']):g} eV, largest force {largest:g} eV/Å")
        for i, j, distance in zip(*neighbor_list("ijd", atoms, TOO_CLOSE)):
            raise SimulationError(f"atoms {i} and {j} are {distance:.3f} Å apart, closer than in any bond")
        frame = atoms.copy()
        for name in ("momenta", "initial_charges", "initial_magmoms"):
            frame.arrays.pop(name, None)
        frame.calc = SinglePointCalculator(frame, **values)
        return frame

    @cached_property
    def _with_stress(self) -> bool:
        return all(a.pbc.all() for a in self.starts) and "stress" in properties_of(self.calculator)

    def check_calculator(self, kept: "_Frames") -> None:
        """Raise OtherSettingsError if frames of an earlier call have energies of another calculator."""
        if kept.out is None or not kept.size:
            return
        first = ase.io.read(kept.out / FRAMES, index=0, format="extxyz")
        assert isinstance(first, Atoms)
        before, atoms = first.get_potential_energy(), first.copy()
        for name, key in (("charge", "initial_charges"), ("spin", "initial_magmoms")):
            if name in atoms.info:
                total = float(atoms.info[name]) - (name == "spin")
                atoms.set_array(key, np.full(len(atoms), total / len(atoms)))
        now = float(as_calculator(self.given).get_property("energy", atoms))
        if abs(now - before) > _SAME:
            text = (
                f"{kept.out} holds frames of another calculator: the energy of the first one is {before:.6f} "
                f"eV there, and {now:.6f} eV by {name_of(self.given)} now"
            )
            raise OtherSettingsError(text, kept.out, force=False)

    def judge(self, kept: "_Frames") -> None:
        """Warn of trajectories that ended early; raise SimulationError if they are more than half.

        Then nothing is kept, so that the same call tries all of them again.
        """
        if not kept.failures:
            return
        text = (
            f"the calculator failed in {len(kept.failures)} of {len(kept.counts)} trajectories at "
            f"{self.settings['temperature']:g} K (the first time: {kept.failures[0][:200]})"
        )
        if len(kept.failures) > self.trajectories / 2 or not sum(kept.counts):
            kept.forget()
            raise SimulationError(
                f"{text}; wanted a calculator for these elements, or a lower temperature or timestep"
            )
        warnings.warn(f"{text}; there are {sum(kept.counts)} frames", SimulationWarning, stacklevel=3)


def _is_method(calculator: object) -> bool:
    return isinstance(calculator, str) and calculator.lower() in XTB


class _Frames:
    """The frames so far, in memory or in a folder that this process holds.

    A trajectory is one write. The state says how many bytes were written, so that what came later is cut off.
    """

    def __init__(self, out: str | os.PathLike[str] | None, record: Mapping[str, Any], resume: str) -> None:
        self.out = None if out is None else Path(out)
        self.record, self.resume = json.loads(json.dumps(record)), resume
        self.counts: list[int] = []  # frames of each trajectory
        self.failures: list[str] = []
        self.size = 0
        self.frames: list[Atoms] = []
        self._held = ExitStack()

    def __enter__(self) -> "_Frames":
        if self.out is not None:
            check_unused(self.out, [FRAMES, STATE], restart=self.resume == "restart")
            self._held.enter_context(lock_folder(self.out))
            try:
                self._open(self.out)
            except BaseException:
                self._held.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _open(self, out: Path) -> None:
        state = out / STATE
        if self.resume == "restart":
            state.unlink(missing_ok=True)
        if state.exists():
            try:
                found = json.loads(state.read_text())
                self.counts, self.failures, self.size = found["counts"], found["failures"], found["bytes"]
                changed = differences(found["record"], self.record)
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{state}: damaged ({error}); begin anew with resume='restart'"
                ) from error
            if changed:
                text = f"{out} holds frames of other settings or structures:\n  " + "\n  ".join(changed)
                raise OtherSettingsError(text, out, force=False)
        with open(out / FRAMES, "ab") as file:
            if file.tell() < self.size:
                raise CheckpointError(
                    f"{out / FRAMES}: {file.tell()} bytes, and it had {self.size}; begin anew with "
                    "resume='restart'"
                )
            file.truncate(self.size)

    def forget(self) -> None:
        """Remove the state, so that the next call begins anew."""
        if self.out is not None:
            (self.out / STATE).unlink(missing_ok=True)

    def add(self, frames: list[Atoms], failure: str) -> None:
        """Keep the frames of the next trajectory."""
        self.counts.append(len(frames))
        self.failures += [failure] if failure else []
        if self.out is None:
            self.frames += frames
            return
        text = io.StringIO()
        if frames:
            ase.io.write(text, frames, format="extxyz")
        content = text.getvalue().encode()
        with open(self.out / FRAMES, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(content)
        state = {
            "record": self.record,
            "counts": self.counts,
            "failures": self.failures,
            "bytes": self.size,
        }
        write_file(self.out / STATE, json.dumps(state))

    def dataset(self) -> Dataset:
        """All frames."""
        return from_atoms(self.frames) if self.out is None else read_extxyz(self.out / FRAMES)

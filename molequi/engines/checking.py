"""The same checks through every engine that is installed: ``molequi.check_engines``."""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.geometry import find_mic

from molequi.checkpoint import load
from molequi.engines.evaluator import Evaluator
from molequi.engines.probes import NOTHING, PROBES, Probe
from molequi.engines.reference import ROUNDING, STEPS, TIMESTEP, Reference, deviation, fluctuation
from molequi.engines.report import EngineReport, Measured
from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, ModelError, did_you_mean
from molequi.model import Model
from molequi.quantities import SYMBOLS
from molequi.readers.atoms import read_frames
from molequi.util.signature import check_keywords

_STEP = 1e-4  # Å, and relative for a strain
_KELVIN = 100.0
_FRAMES = 2  # of a file
_AWAY = 1.0  # Å, more than the skin of a neighbor list
_SHARE = 0.01  # of the path, the least that forces count as having moved the atoms


class Study:
    """One engine and one structure.

    Parameters
    ----------
    probe : Probe
        The engine.
    model : Reference
        What the model itself computes of the structure.
    """

    def __init__(self, probe: Probe, model: Reference) -> None:
        self.probe, self.model, self.atoms, self.totals = probe, model, model.atoms, model.totals
        self.random = np.random.default_rng(0)
        self.reference, self.found = model.start, probe.evaluate(model.atoms)


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-3))


def _largest(*errors: float) -> float:
    """The largest, and NaN if one is: the built-in maximum drops it."""
    return float(np.max(errors))


def _energy(study: Study) -> float:
    return abs(study.found.energy - study.reference.energy) / len(study.atoms)


def _forces(study: Study) -> float:
    return _relative(study.found.forces, study.reference.forces)


def _virial(study: Study) -> float | None:
    if study.found.virial is NOTHING:
        return None
    return _relative(study.found.virial, study.reference.virial)


def _force_differences(study: Study) -> float:
    way = study.random.normal(size=study.atoms.positions.shape)
    slope = _slope(study, lambda step: _moved(study.atoms, study.atoms.positions + step * way))
    scale = float(np.linalg.norm(way) * np.linalg.norm(study.found.forces)) / len(study.atoms) ** 0.5
    return abs(slope + float((study.found.forces * way).sum())) / max(scale, 1e-3)


def _virial_differences(study: Study) -> float:
    strain = study.random.normal(size=(3, 3))
    strain = (strain + strain.T) / 2

    def strained(step: float) -> Atoms:
        frame = study.atoms.copy()
        change = np.eye(3) + step * strain
        frame.set_cell(frame.cell.array @ change)
        frame.positions = frame.positions @ change
        return frame

    virial = study.reference.virial
    scale = max(float(np.linalg.norm(strain) * np.linalg.norm(virial)), 1e-3)
    return abs(_slope(study, strained) + float((virial * strain).sum())) / scale


def _moved(atoms: Atoms, positions: np.ndarray) -> Atoms:
    frame = atoms.copy()
    frame.positions = positions
    return frame


def _slope(study: Study, moved: Callable[[float], Atoms]) -> float:
    """Slope of the engine's energy, with an error of fourth order in the step."""
    e = {k: study.probe.evaluate(moved(k * _STEP)).energy for k in (-2, -1, 1, 2)}
    return (8 * (e[1] - e[-1]) - (e[2] - e[-2])) / (12 * _STEP)


def _second_order(study: Study) -> float | None:
    """Energy error at half the timestep, times four, over that of the whole timestep, minus one.

    The law is one of small timesteps: the timestep comes from trajectories of the model itself.
    """
    timestep = study.model.timestep
    whole = study.probe.nve(study.atoms, timestep, STEPS)[0]
    half = study.probe.nve(study.atoms, timestep / 2, 2 * STEPS)[0]
    return None if fluctuation(whole) <= ROUNDING else deviation(whole, half)


def _trajectory(study: Study) -> float:
    """Distance from a trajectory of the model itself, over how far the forces have moved the atoms."""
    atoms, time = study.atoms, STEPS * TIMESTEP * units.fs
    end = study.model.walked.positions
    free = atoms.positions + time * atoms.get_velocities()
    apart = _apart(atoms, study.probe.nve(atoms, TIMESTEP, STEPS)[1], end)
    path = float(np.abs(free - atoms.positions).max())  # without forces, only rounding is left
    return apart / max(float(np.abs(end - free).max()), _SHARE * path, 1e-6)


def _restart(study: Study) -> float:
    ends = [study.probe.nve(study.atoms, TIMESTEP, STEPS, restart=again)[1] for again in (False, True)]
    return _apart(study.atoms, *ends)


def _apart(atoms: Atoms, one: np.ndarray, other: np.ndarray) -> float:
    far = one - other
    return float(np.abs(find_mic(far, atoms.cell, atoms.pbc)[0] if atoms.pbc.any() else far).max())


def _permuted(study: Study) -> float:
    order = study.random.permutation(len(study.atoms))
    found = study.probe.evaluate(study.atoms[order])
    return _largest(
        _relative(found.forces, study.found.forces[order]),
        abs(found.energy - study.found.energy) / len(order),
    )


def _wrapped(study: Study) -> float:
    frame = study.atoms.copy()
    frame.translate(study.random.normal(size=3) * 5)
    if frame.pbc.any():
        frame.wrap()
        frame.positions[0] += frame.cell.array[0] - 2 * frame.cell.array[2]
    found = study.probe.evaluate(frame)
    return _largest(
        _relative(found.forces, study.found.forces), abs(found.energy - study.found.energy) / len(frame)
    )


def _batch(study: Study) -> float | None:
    other = study.atoms.copy()
    other.positions += study.random.normal(size=other.positions.shape) * 0.02
    frames = [other, study.atoms, other]
    together = study.probe.batch(frames)
    if together is None:
        return None
    near = study.model.evaluate(other)
    alone = [near, study.reference, near]
    return _largest(
        *(_relative(a.forces, b.forces) for a, b in zip(together, alone)),
        *(abs(a.energy - b.energy) / len(other) for a, b in zip(together, alone)),
    )


def _followed(study: Study) -> float:
    """The structure, by an instance that has computed its atoms elsewhere: its neighbor list is another."""
    away = study.atoms.copy()
    if not away.pbc.any():
        away.positions *= 3.0  # few of the pairs are neighbors there
    away.positions += study.random.normal(size=away.positions.shape) * _AWAY
    found = study.probe.follow([away, study.atoms])
    return _largest(
        _relative(found.forces, study.found.forces), abs(found.energy - study.found.energy) / len(away)
    )


def _images(study: Study) -> float | None:
    """A supercell: twice the energy, and the same forces. With a total charge it is another structure."""
    if not study.atoms.pbc.all() or study.totals:
        return None
    n = len(study.atoms)
    found = study.probe.evaluate(study.atoms.repeat((2, 1, 1)))
    return _largest(
        abs(found.energy - 2 * study.found.energy) / n,
        _relative(found.forces, np.concatenate([study.found.forces] * 2)),
    )


def _totals(study: Study) -> float | None:
    """Another charge and spin, through the engine and through the model."""
    if not study.totals:
        return None
    other = {name: value + 2 for name, value in study.totals.items()}
    probe, model = study.probe, study.model.model
    changed = Study(type(probe)(model, **probe.options | other), Reference(model, study.atoms, other))
    return abs(changed.found.energy - changed.reference.energy) / len(study.atoms)


def _unknown(study: Study) -> float:
    frame = study.atoms.copy()
    frame.numbers[-1] = next(z for z in range(len(SYMBOLS) - 1, 0, -1) if z not in study.model.model.elements)
    try:
        study.probe.evaluate(frame)
    except ModelError as error:
        return 0.0 if "does not know" in str(error) else 1.0
    return 1.0


@dataclass(frozen=True)
class Check:
    """One of the checks.

    Parameters
    ----------
    name : str
        Its name.
    measure : callable
        Takes a `Study`; None if it does not apply.
    tolerance : float
        The largest value that passes.
    unit : str
        Unit of the value.
    """

    name: str
    measure: Callable[[Study], float | None]
    tolerance: float
    unit: str = ""


CHECKS = (
    Check("energy", _energy, 1e-8, "eV/atom"),
    Check("forces", _forces, 1e-8),
    Check("virial", _virial, 1e-8),
    Check("forces by differences", _force_differences, 1e-5),
    Check("virial by differences", _virial_differences, 1e-5),
    Check("energy error and timestep", _second_order, 0.1),
    Check("trajectory", _trajectory, 1e-5),
    Check("restart", _restart, 1e-7, "Å"),
    Check("permuted atoms", _permuted, 1e-8),
    Check("moved and wrapped", _wrapped, 1e-8),
    Check("neighbors renewed", _followed, 1e-8),
    Check("periodic images", _images, 1e-8),
    Check("batch", _batch, 1e-8),
    Check("charge and spin", _totals, 1e-8, "eV/atom"),
    Check("unknown element refused", _unknown, 0.0),
)


@check_keywords()
def check_engines(
    model: Model | Ensemble | str | os.PathLike[str],
    structures: Sequence[Atoms] | Atoms | str | os.PathLike[str] | None = None,
    *,
    engines: Sequence[str] | None = None,
    level: str | None = None,
    charge: float | None = None,
    spin: float | None = None,
    device: str = "auto",
) -> EngineReport:
    """Run the same checks through every installed engine: ASE, torch-sim, OpenMM, openmmml, i-PI and LAMMPS.

    Each engine computes with the model in float64, and its numbers are compared with the model itself:
    energies, forces, virials, trajectories. Forces and virials are also compared with finite differences of
    the engine's energy, and the energy error of dynamics with half the timestep must be a quarter, at a
    timestep that is short for this model. The neighbors must follow the atoms. Other orders of the atoms,
    wrapped atoms, supercells, batches and restarts must change nothing.

    Parameters
    ----------
    model : Model, Ensemble, str or Path
        The model or its file.
    structures : ase.Atoms, sequence of ase.Atoms, str or Path, optional
        Structures, of a file the first two; each periodic in all directions or in none. By default a cluster
        and a cell are made of the elements of the model.
    engines : sequence of str, optional
        Names of engines; by default all. A named one that is not installed is an error.
    level : str, optional
        Level of theory, of a model of several.
    charge, spin : float, optional
        Total charge (e) and spin multiplicity of the structures, for a model that reads them.
    device : {"auto", "cpu", "cuda", "cuda:1"}
        Where the model runs.

    Returns
    -------
    EngineReport
        Largest error of each check and engine over the structures.

    Raises
    ------
    ConfigError
        For an unknown engine, and for structures that are periodic in some directions only.
    ModelError
        As `molequi.engines.Evaluator` does.

    Examples
    --------
    >>> import torch
    >>> import molequi as mq
    >>> _ = torch.manual_seed(0)
    >>> model = mq.Model(mq.PaiNN(elements=["H", "O"], channels=8, layers=1, cutoff=3.0))
    >>> check_engines(model, engines=["ase"]).passed
    True
    """
    model = deepcopy(model) if isinstance(model, (Model, Ensemble)) else load(model, device=device)
    if level is not None:
        if not isinstance(model, Model):
            raise ModelError(f"level={level!r}: an ensemble has no levels of theory")
        model = model.at(level)
    options: dict[str, Any] = {"charge": charge, "spin": spin, "device": device}
    evaluator = Evaluator(model, **options)
    plain = evaluator.model.plain()
    known = {probe.name: probe for probe in PROBES}
    for name in engines or ():
        if name not in known:
            raise ConfigError(
                f"engine {name!r}: unknown{did_you_mean(name, known)} Wanted {', '.join(known)}"
            )
    chosen = [known[name] for name in engines] if engines else list(PROBES)
    missing = {p.name: f"pip install 'molequi[{p.extra}]'" for p in chosen if find_spec(p.package) is None}
    if engines and missing:
        raise ConfigError("; ".join(f"{name} is not installed: {how}" for name, how in missing.items()))
    frames = _frames(structures, plain)
    references = [Reference(plain, frame, evaluator.totals) for frame in frames]
    found = {
        probe.name: _through(probe(plain, **options), references)
        for probe in chosen
        if probe.name not in missing
    }
    return EngineReport(found, missing, tuple(frame.get_chemical_formula() for frame in frames))


def _through(probe: Probe, references: Sequence[Reference]) -> dict[str, Measured]:
    """The largest value of each check; a check that raises an error fails and says it."""
    values: dict[str, list[float]] = {check.name: [] for check in CHECKS}
    notes: dict[str, str] = {}
    for reference in references:
        try:
            study = Study(probe, reference)
        except Exception as error:  # engines raise errors of their own types
            notes |= {check.name: _said(error) for check in CHECKS}
            continue
        for check in CHECKS:
            try:
                value = check.measure(study)
            except Exception as error:
                notes[check.name] = _said(error)
            else:
                values[check.name] += [] if value is None else [value]
    return {
        check.name: Measured(
            _largest(*values[check.name]) if values[check.name] else None,
            check.tolerance,
            check.unit,
            notes.get(check.name, ""),
        )
        for check in CHECKS
    }


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _frames(structures: Any, model: Model | Ensemble) -> list[Atoms]:
    """Structures with velocities."""
    if structures is None:
        frames = _made(model)
    elif isinstance(structures, Atoms):
        frames = [structures.copy()]
    elif isinstance(structures, (str, os.PathLike)):
        frames = read_frames(os.fspath(structures))[:_FRAMES]
    else:
        frames = [frame.copy() for frame in structures]
    if not frames:
        raise ConfigError("no structures; wanted one or more")
    for frame in frames:
        frame.set_constraint()  # no engine has it, and ASE would take it out of the forces
        if frame.pbc.any() and not frame.pbc.all():
            raise ConfigError(
                f"{frame.get_chemical_formula()} is periodic in some directions (pbc={frame.pbc.tolist()}), "
                "which OpenMM cannot have; wanted all directions or none"
            )
        if not np.any(frame.get_momenta()):
            size = np.sqrt(_KELVIN * units.kB * frame.get_masses())[:, None]
            frame.set_momenta(size * np.random.default_rng(0).normal(size=(len(frame), 3)))
    return frames


def _made(model: Model | Ensemble) -> list[Atoms]:
    """A cluster of four atoms, and a cell of eight, for a model that has a cutoff."""
    elements = [z for z in model.elements if z > 0]
    if not elements:
        raise ConfigError("this model knows no chemical elements; give structures")
    random = np.random.default_rng(0)
    numbers = np.resize(elements, 8)
    apart = 2.2 * float(np.mean(covalent_radii[numbers]))
    sites = np.array(list(np.ndindex(2, 2, 2))) * apart + random.normal(size=(8, 3)) * 0.05 * apart
    cell = 2 * apart * (np.eye(3) + [[0, 0, 0], [0.15, 0, 0], [0.1, -0.2, 0]])
    cluster = Atoms(numbers[:4], sites[[0, 1, 2, 4]])
    return [cluster] if model.cutoff is None else [cluster, Atoms(numbers, sites, cell=cell, pbc=True)]

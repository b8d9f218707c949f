"""Nudged elastic bands whose images a model calculates in one batch."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.geometry import find_mic
from ase.mep import NEB
from ase.optimize import FIRE

from molequi.ensemble import Ensemble
from molequi.errors import ConfigError, SimulationError
from molequi.graph import collate
from molequi.interfaces.ase import Calculator
from molequi.model import Model
from molequi.quantities import KNOWN
from molequi.simulation.inputs import (
    Structure,
    as_calculator,
    check_energy,
    checked_numbers,
    number_of_steps,
    read_structure,
)
from molequi.util.html import html_heading, html_table
from molequi.util.progress import ProgressBar
from molequi.util.signature import check_keywords
from molequi.util.tables import text_table

_METHOD = "improvedtangent"
_Found = list[tuple[float, np.ndarray]]


@dataclass(frozen=True)
class Band:
    """Result of `neb`. Printed, a table of the images.

    Parameters
    ----------
    images : tuple of ase.Atoms
        The structures from start to end, with their energies and forces.
    energies : array, shape (images,)
        Energies in eV.
    fmax : float
        Largest force on the band in eV/Å.
    steps : int
        Number of steps.
    converged : bool
        Whether the largest force is below the threshold.
    """

    images: tuple[Atoms, ...]
    energies: np.ndarray
    fmax: float
    steps: int
    converged: bool

    @property
    def top(self) -> int:
        """Number of the image of highest energy: with a climbing image, the transition state."""
        return int(np.argmax(self.energies))

    @property
    def path(self) -> np.ndarray:
        """Length of the path from the start to each image in Å: norms of the displacements of all atoms."""
        steps = [
            np.linalg.norm(find_mic(b.positions - a.positions, a.cell, a.pbc)[0])
            for a, b in pairwise(self.images)
        ]
        return np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def barrier(self) -> float:
        """Energy of the highest image above the start, in eV."""
        return float(self.energies.max() - self.energies[0])

    @property
    def reverse_barrier(self) -> float:
        """Energy of the highest image above the end, in eV."""
        return float(self.energies.max() - self.energies[-1])

    def _title(self) -> str:
        found = "converged" if self.converged else "NOT converged"
        return (
            f"{found} in {self.steps} steps: barrier {self.barrier:.4f} eV, backwards "
            f"{self.reverse_barrier:.4f} eV, largest force {self.fmax:.2e} eV/Å"
        )

    def _table(self) -> tuple[list[str], list[list[str]]]:
        rows = [[str(k), f"{e - self.energies[0]:.4f}"] for k, e in enumerate(self.energies)]
        rows[self.top][1] += " top"
        return ["image", "energy (eV)"], rows

    def __str__(self) -> str:
        return "\n".join([self._title(), *text_table(*self._table())])

    def _repr_html_(self) -> str:
        return html_heading(self._title()) + html_table(*self._table())

    __repr__ = __str__


@check_keywords()
def neb(
    images: Sequence[Structure],
    calculator: BaseCalculator | Model | Ensemble | str | os.PathLike[str],
    *,
    number: int = 7,
    climb: bool = True,
    spring: float = 0.1,
    fmax: float = 0.05,
    steps: int = 500,
    progress: bool = True,
) -> Band:
    """The path of lowest energy between two structures, by a nudged elastic band.

    This is ASE's NEB with improved tangents (Henkelman and Jónsson, J. Chem. Phys. 113, 9978, 2000), a
    climbing image (Henkelman, Uberuaga and Jónsson, ibid. 9901) and FIRE. A model calculates all images in
    one batch; another ASE calculator takes one after the other. Constraints of the structures hold.

    Parameters
    ----------
    images : sequence of structures
        Start and end, both relaxed, between which IDPP interpolates; or three or more images of a path.
    calculator : ASE calculator, Model, Ensemble, str or Path
        As in `molequi.md`.
    number : int
        Number of images, start and end included, if two structures are given.
    climb : bool
        Let the highest image climb to the saddle point.
    spring : float
        Spring constant in eV/Å².
    fmax : float
        The largest force at which the band counts as converged, in eV/Å.
    steps : int
        Largest number of steps.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Band
        The images with their energies, and the barriers.

    Raises
    ------
    ConfigError
        For fewer than three images, and for structures that are not the same atoms in the same order or
        differ in the charge, spin or electric field that a model reads.
    SimulationError
        If an energy or a force is not finite.
    DataError
        If a structure cannot be read.

    Examples
    --------
    >>> from ase import Atoms
    >>> from ase.calculators.emt import EMT
    >>> ends = [Atoms("Cu3", [[0, 0, 0], [2.4, 0, 0], [1.2, y, 0]]) for y in (2.0, -2.0)]
    >>> len(neb(ends, EMT(), number=5, steps=2, progress=False).images)
    5
    """
    checked_numbers(fmax=fmax, spring=spring)
    if not isinstance(climb, bool):
        raise ConfigError(f"climb={climb!r}: wanted True or False")
    number_of_steps(None, steps, 1.0)
    frames = _frames(images, number)
    engine = as_calculator(calculator)
    check_energy(engine)
    calculate = _together(engine, frames) if isinstance(engine, Calculator) else _one_by_one(engine, frames)
    band = _Band(frames, calculate, k=spring, climb=climb, method=_METHOD)
    with ProgressBar("neb", steps, show=progress, keep=True) as bar, FIRE(band, logfile=None) as optimizer:
        for _ in optimizer.irun(fmax=fmax, steps=steps):
            bar.update(optimizer.nsteps, f"barrier {max(band.known) - band.known[0]:.3g} eV")
        largest = float(np.linalg.norm(band.get_forces(), axis=1).max())
        if largest < fmax:
            bar.finish()
    return Band(tuple(frames), np.array(band.known), largest, optimizer.nsteps, largest < fmax)


class _Band(NEB):
    """ASE's band, whose images are calculated together before it asks for them."""

    def __init__(
        self, images: list[Atoms], calculate: Callable[[Sequence[int]], _Found], **options: Any
    ) -> None:
        super().__init__(images, **options)
        self.calculate = calculate
        self.known: list[float] = []
        self._calculated: np.ndarray | None = None  # positions of the images; optimizers ask twice for each
        self._set([0, len(images) - 1])

    def get_forces(self) -> np.ndarray:
        """Forces on the band, in eV/Å."""
        positions = self.get_positions()
        if self._calculated is None or not np.array_equal(positions, self._calculated):
            self._set(range(1, len(self.images) - 1))
            self._calculated = positions.copy()
        self.known = [float(image.get_potential_energy()) for image in self.images]
        return super().get_forces()

    def _set(self, numbers: Sequence[int]) -> None:
        for k, (energy, forces) in zip(numbers, self.calculate(numbers)):
            if not (np.isfinite(energy) and np.isfinite(forces).all()):
                raise SimulationError(
                    f"{_name(k, len(self.images))} of the band: its energy or a force is not finite"
                )
            image = self.images[k]
            image.calc = SinglePointCalculator(image, energy=energy, forces=forces)


def _together(calculator: Calculator, frames: Sequence[Atoms]) -> Callable[[Sequence[int]], _Found]:
    """All images in one batch, each with a neighbor list that is kept."""
    model = calculator.model
    _check_inputs(calculator, frames)
    members = [calculator.sharing() for _ in frames]
    short = model.predicting(["energy", model.quantities.get("forces", KNOWN["forces"])])

    def calculate(numbers: Sequence[int]) -> _Found:
        out = short(collate([members[k].graph(frames[k]) for k in numbers]))
        forces = out["forces"].detach().cpu().double().numpy().reshape(len(numbers), -1, 3)
        return list(zip(out["energy"].detach().cpu().double().tolist(), forces))

    return calculate


def _check_inputs(calculator: Calculator, frames: Sequence[Atoms]) -> None:
    """Check that the images have the same charge, spin and fields, as far as the model reads them."""
    inputs = calculator.model.backbone.inputs
    used = () if inputs is None else inputs.used
    given = [calculator.inputs_of(frame) for frame in frames]
    for k, own in enumerate(given):
        if own != given[0]:
            raise ConfigError(
                f"{_name(k, len(given))} has {own or 'no charge, spin or field'}, the first structure "
                f"{given[0] or 'no charge, spin or field'}; wanted the same of all"
            )
    if missing := [n for n in ("charge", "spin") if n in used and n not in given[0]]:
        words = ", ".join(f"atoms.info[{n!r}]" for n in missing)
        raise ConfigError(
            f"this model reads {', '.join(missing)} of each structure; set {words} of the images"
        )


def _one_by_one(calculator: BaseCalculator, frames: Sequence[Atoms]) -> Callable[[Sequence[int]], _Found]:
    def calculate(numbers: Sequence[int]) -> _Found:
        found = []
        for k in numbers:
            frame = frames[k].copy()
            frame.calc = calculator
            found.append((float(frame.get_potential_energy()), frame.get_forces(apply_constraint=False)))
        return found

    return calculate


def _name(k: int, number: int) -> str:
    """What an image is called in messages: the ends are the structures that the caller gave."""
    return {0: "the first structure", number - 1: "the last structure"}.get(k, f"image {k}")


def _held(atoms: Atoms) -> list[str]:
    """The constraints, as far as ASE can write them down."""
    return [repr(one.todict()) for one in atoms.constraints if hasattr(one, "todict")]


def _frames(images: Sequence[Structure], number: int) -> list[Atoms]:
    """The images of the band, interpolated between two."""
    if isinstance(images, (str, os.PathLike, Atoms)) or len(images) < 2:
        raise ConfigError("images: wanted a start and an end, [start, end], or more images of a path")
    frames = [read_structure(one) for one in images]
    for k, frame in enumerate(frames):
        name = _name(k, len(frames))
        if len(frame) != len(frames[0]) or (frame.numbers != frames[0].numbers).any():
            raise ConfigError(
                f"{name} is {frame.get_chemical_formula()} and the first structure "
                f"{frames[0].get_chemical_formula()}, or the order of their atoms differs; wanted the same "
                "atoms in the same order"
            )
        if not np.allclose(frame.cell.array, frames[0].cell.array) or (frame.pbc != frames[0].pbc).any():
            raise ConfigError(
                f"{name} has another cell or pbc than the first one; wanted the same cell of all"
            )
        if _held(frame) != _held(frames[0]):
            raise ConfigError(f"{name} has other constraints than the first one; wanted the same of all")
    if len(frames) > 2:
        return frames
    if not isinstance(number, int) or isinstance(number, bool) or number < 3:
        raise ConfigError(f"number={number!r}: wanted three images or more, start and end included")
    path = [frames[0], *(frames[0].copy() for _ in range(number - 2)), frames[1]]
    NEB(path, method=_METHOD).interpolate(method="idpp", mic=bool(frames[0].pbc.any()))
    return path

"""A model as a force of OpenMM, computed in Python: no TorchForce, no TorchScript."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from ase import Atoms, units
from openmm import app

from molequi.domain import check_elements
from molequi.engines.cells import reduced
from molequi.engines.evaluator import Evaluation, Evaluator
from molequi.ensemble import Ensemble
from molequi.errors import DataError
from molequi.model import Model

_NM = 10.0  # Å
_KJ = units.kJ / units.mol  # eV in one kJ/mol


class Compute:
    """What a PythonForce calls. It is pickled with the bytes of a model file, for OpenMM's serializer.

    Parameters
    ----------
    evaluator : Evaluator
        The model.
    numbers : array, shape (N,)
        Atomic numbers of the particles.
    periodic : bool
        Whether the box is periodic.
    """

    def __init__(self, evaluator: Evaluator, numbers: np.ndarray, periodic: bool) -> None:
        self.evaluator, self.numbers, self.periodic = evaluator, numbers, periodic
        self._last: tuple[np.ndarray, np.ndarray | None, Evaluation] | None = None

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces in kJ/mol/nm of a state.

        Parameters
        ----------
        state : openmm.State
            The positions, and the box of a periodic system.
        """
        nm = openmm.unit.nanometer
        pos = np.asarray(state.getPositions(asNumpy=True).value_in_unit(nm)) * _NM
        cell = None
        if self.periodic:
            cell = np.asarray(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(nm)) * _NM
        last = self._last  # OpenMM asks again for the energy of a step
        if last is not None and np.array_equal(pos, last[0]) and np.array_equal(cell, last[1]):  # type: ignore[arg-type]
            found = last[2]
        else:
            found = self.evaluator(pos, self.numbers, cell=cell, pbc=self.periodic)
            self._last = pos, cell, found
        return found.energy / _KJ, found.forces * (_NM / _KJ)

    def __reduce__(self) -> tuple[Any, ...]:
        return Compute, (self.evaluator, self.numbers, self.periodic)


@dataclass(frozen=True)
class OpenMMSystem:
    """What a simulation with OpenMM needs; `molequi.engines.openmm_system` makes it.

    Parameters
    ----------
    system : openmm.System
        Masses, box and the force of the model.
    topology : openmm.app.Topology
        The atoms with their elements, without bonds.
    positions : array, shape (N, 3)
        Positions in nm, in the orientation of the box.
    rotation : array, shape (3, 3)
        Turns vectors of the structure into the orientation of OpenMM: ``vectors @ rotation``.
    """

    system: Any
    topology: Any
    positions: np.ndarray
    rotation: np.ndarray


def force_of(
    model: Model | Ensemble | str | os.PathLike[str],
    numbers: Sequence[int] | np.ndarray,
    periodic: bool,
    **options: Any,
) -> Any:
    """See `molequi.engines.openmm_force`.

    Parameters
    ----------
    model, numbers, periodic, **options
        As there.
    """
    evaluator = Evaluator(model, **options)
    found = np.asarray(numbers, dtype=np.int64)
    check_elements(evaluator.model, found)  # OpenMM would only say that a callback failed
    force = openmm.PythonForce(Compute(evaluator, found, periodic))
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName("molequi")
    return force


def system_of(atoms: Atoms, model: Model | Ensemble | str | os.PathLike[str], **options: Any) -> OpenMMSystem:
    """See `molequi.engines.openmm_system`.

    Parameters
    ----------
    atoms, model, **options
        As there.
    """
    if atoms.pbc.any() and not atoms.pbc.all():
        raise DataError(
            f"pbc={atoms.pbc.tolist()}: an OpenMM box is periodic in all directions or in none; set "
            "atoms.pbc=False, or give the cell enough vacuum and atoms.pbc=True"
        )
    periodic = bool(atoms.pbc.all())
    force = force_of(model, atoms.numbers, periodic, **options)
    system, topology = openmm.System(), app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for mass, number in zip(atoms.get_masses(), atoms.numbers):
        system.addParticle(float(mass))
        element = app.Element.getByAtomicNumber(int(number))
        topology.addAtom(element.symbol, element, residue)
    positions, rotation = atoms.positions, np.eye(3)
    if periodic:
        box, rotation = reduced(atoms.cell.array)
        positions = positions @ rotation
        vectors = [openmm.Vec3(*map(float, row)) for row in box / _NM]
        system.setDefaultPeriodicBoxVectors(*vectors)
        topology.setPeriodicBoxVectors(vectors * openmm.unit.nanometer)
    system.addForce(force)
    return OpenMMSystem(system, topology, positions / _NM, rotation)

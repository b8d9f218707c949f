"""What the checks of `molequi.check_engines` compare engines with: the model itself, without any engine."""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units

from molequi.engines.evaluator import VIRIAL, Evaluation
from molequi.ensemble import Ensemble
from molequi.graph import Graph
from molequi.model import Model
from molequi.neighbors import connect
from molequi.quantities import KNOWN

TIMESTEP, STEPS = 0.5, 10  # fs
ROUNDING = 1e-9  # eV
_HALVINGS = 12  # of the timestep, at most
_SMALL, _ASYMPTOTIC = 1e-3, 0.02  # energy error over the energy exchanged, and its deviation from the law


class Walk(NamedTuple):
    """A trajectory of the model itself.

    Attributes
    ----------
    potential, total : array, shape (steps + 1,)
        Energies in eV.
    positions : array, shape (N, 3)
        At the end, in Å.
    """

    potential: np.ndarray
    total: np.ndarray
    positions: np.ndarray


class Reference:
    """A model in float64 and one structure, the same for all engines. What is computed once is kept.

    Parameters
    ----------
    model : Model or Ensemble
        The model itself.
    atoms : ase.Atoms
        The structure, with velocities.
    totals : dict
        Charge and spin, for a model that reads them.
    """

    def __init__(self, model: Model | Ensemble, atoms: Atoms, totals: dict[str, Any]) -> None:
        self.model, self.atoms, self.totals = model, atoms, totals

    @cached_property
    def start(self) -> Evaluation:
        """Energy, forces and virial of the structure."""
        return self.evaluate(self.atoms)

    @cached_property
    def walked(self) -> Walk:
        """The trajectory that engines are compared with."""
        return self.walk(TIMESTEP, STEPS)

    def evaluate(self, atoms: Atoms) -> Evaluation:
        """What the model itself gives, with a search for neighbors and no part of an engine.

        Parameters
        ----------
        atoms : ase.Atoms
            A structure.
        """
        periodic = bool(atoms.pbc.any())
        graph = Graph.single(
            atoms.positions.copy(),
            atoms.numbers.copy(),
            cell=atoms.cell.array.copy() if periodic else None,
            pbc=atoms.pbc.copy() if periodic else None,
            **self.totals,
        )
        forces = "forces" if "forces" in self.model.quantities else KNOWN["forces"]
        model = self.model.predicting(["energy", forces, VIRIAL])
        out = model(connect(graph.to(self.model.device), self.model.cutoff))
        energy, force, virial = (out[n].cpu().numpy() for n in ("energy", "forces", "virial"))
        return Evaluation(float(energy[0]), force, virial[0])

    def walk(self, timestep: float, steps: int) -> Walk:
        """Dynamics of the model itself by velocity Verlet, without any engine.

        Parameters
        ----------
        timestep : float
            In fs.
        steps : int
            Number of steps.
        """
        frame, dt, found = self.atoms.copy(), timestep * units.fs, self.start
        masses, speed = frame.get_masses()[:, None], frame.get_velocities()
        energies = []
        for k in range(steps + 1):
            energies.append((found.energy, float((masses * speed**2).sum()) / 2))
            if k < steps:
                speed = speed + dt / 2 * found.forces / masses
                frame.positions += dt * speed
                found = self.evaluate(frame)
                speed = speed + dt / 2 * found.forces / masses
        potential, kinetic = np.array(energies).T
        return Walk(potential, potential + kinetic, frame.positions)

    @cached_property
    def timestep(self) -> float:
        """A timestep in fs at which the model itself has the energy error of a small timestep.

        Untrained models can be so steep that 0.5 fs is a large step, and where a pair crosses the cutoff
        within a trajectory, the second derivatives jump. It is halved until both are past: the error is
        small beside the potential energy that is exchanged, and a quarter of it is left at half the step.
        """
        timestep = TIMESTEP
        whole = self.walked
        for _ in range(_HALVINGS):
            if fluctuation(whole.total) <= ROUNDING:
                break
            half = self.walk(timestep / 2, 2 * STEPS)
            small = fluctuation(whole.total) <= _SMALL * fluctuation(whole.potential)
            if small and deviation(whole.total, half.total) <= _ASYMPTOTIC:
                break
            timestep /= 2
            whole = Walk(half.potential[: STEPS + 1], half.total[: STEPS + 1], half.positions)
        return timestep


def deviation(whole: np.ndarray, half: np.ndarray) -> float:
    """How far the energy error of half the timestep is from a quarter, at the same times.

    Parameters
    ----------
    whole, half : array, shape (T + 1,) and (2 T + 1,)
        Total energies in eV.
    """
    return abs(4 * fluctuation(half[::2]) / fluctuation(whole) - 1)


def fluctuation(energies: np.ndarray) -> float:
    """Root of the mean square deviation from the start.

    Parameters
    ----------
    energies : array, shape (T,)
        In eV.
    """
    return float(np.sqrt(np.mean((energies - energies[0]) ** 2)))

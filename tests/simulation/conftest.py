"""Calculators whose answers are known on paper, and a small model."""

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

import molequi as mq


class Argon(Calculator):
    """Lennard-Jones between all pairs of a cluster, without a cutoff and without memory."""

    implemented_properties = ["energy", "forces"]
    epsilon, sigma = 0.0104, 3.4  # eV, Å

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions[:, None] - atoms.positions[None]
        r2 = (away**2).sum(-1) + np.diag(np.full(len(atoms), np.inf))
        s6 = (self.sigma**2 / r2) ** 3
        slope = 24 * self.epsilon * (2 * s6**2 - s6) / r2
        energy = float(2 * self.epsilon * (s6**2 - s6).sum())
        self.results = {"energy": energy, "forces": (slope[:, :, None] * away).sum(1)}


class Springs(Calculator):
    """Each atom tied to its place: E = k/2 Σ |x - x0|^2."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, places, k=1.0):
        super().__init__()
        self.places, self.k = np.array(places), k

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions - self.places
        self.results = {"energy": float(self.k / 2 * (away**2).sum()), "forces": -self.k * away}


class IdealGas(Calculator):
    """Atoms that do not see each other."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


class Net(Calculator):
    """Springs between the neighbours of a crystal, as they were at the start: E = k/2 Σ (|d| - d0)^2."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, atoms, cutoff, k=1.0):
        super().__init__()
        i, j, self.images, length = neighbor_list("ijSd", atoms, cutoff)
        self.i, self.j, self.k, self.length = i, j, k, length.mean()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        d = atoms.positions[self.j] - atoms.positions[self.i] + self.images @ atoms.cell.array
        r = np.linalg.norm(d, axis=1)
        force = (self.k * (r - self.length) / r)[:, None] * d  # on i, each bond twice in the list
        forces = np.stack([np.bincount(self.i, force[:, c], len(atoms)) for c in range(3)], 1)
        stress = full_3x3_to_voigt_6_stress(force.T @ d / 2 / atoms.cell.volume)
        energy = float(self.k / 4 * ((r - self.length) ** 2).sum())
        self.results = {"energy": energy, "forces": forces, "stress": stress}


@pytest.fixture
def calculators():
    return {"argon": Argon, "springs": Springs, "gas": IdealGas, "net": Net}


@pytest.fixture(scope="session")
def model():
    """A small model whose forces are of the size of a molecule's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (
            mq.Model(mq.NequIP(elements=["H", "C", "O"], cutoff=4.0, channels=8, layers=2, l_max=1))
            .double()
            .eval()
        )
    model.standardize(
        mq.data.Statistics(
            elements=(1, 6, 8),
            mean_neighbors=8.0,
            reference_energies={1: -1.0, 6: -2.0, 8: -3.0},
            reference_energies_given=True,
            shift={"energy": {1: 0.0, 6: 0.0, 8: 0.0}},
            scale={"energy": 0.05},
        )
    )
    return model

"""Calculators whose answers are known on paper, and a small model."""

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes

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


@pytest.fixture
def calculators():
    return {"argon": Argon, "springs": Springs, "gas": IdealGas}


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

"""Models and structures of the tests of terms."""

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

import molequi as mq


def as_graph(atoms: Atoms, **fields: object) -> mq.Graph:
    """A structure without edges."""
    cell = atoms.cell.array if atoms.pbc.any() else None
    return mq.Graph.single(atoms.positions, atoms.numbers, cell=cell, pbc=atoms.pbc, **fields)


def water(seed: int = 0) -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    return atoms


def salt(pbc: object = True, seed: int = 0) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.pbc = pbc
    return atoms


def model(
    quantities=("energy", "forces", "stress"),
    *,
    charge: bool = False,
    field: bool = False,
    seed: int = 0,
    **terms,
) -> mq.Model:
    """A small float64 model with random weights and biases."""
    torch.manual_seed(seed)
    inputs = mq.Inputs(charge=charge, electric_field=field)
    backbone = mq.PaiNN(
        elements=["H", "O", "Na", "Cl", "Ar"], cutoff=4.5, channels=8, layers=2, inputs=inputs
    )
    made = mq.Model(backbone, list(quantities), **terms).double().eval()
    for name, parameter in made.terms.named_parameters():
        if name.endswith("shift") or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return made


def differences(made: mq.Model, graph: mq.Graph, h: float = 1e-4) -> tuple[np.ndarray, np.ndarray | None]:
    """Forces and stress by central differences of the energy."""

    def energy(changed: mq.Graph) -> float:
        return made(changed)["energy"].sum().item()

    forces = np.zeros(graph.pos.shape)
    for index in np.ndindex(*graph.pos.shape):
        step = torch.zeros_like(graph.pos)
        step[index] = h
        plus, minus = (energy(graph.replace(pos=graph.pos + s * step)) for s in (1, -1))
        forces[index] = -(plus - minus) / (2 * h)
    if graph.pbc is None or not bool(graph.pbc.all()):
        return forces, None
    stress, volume = np.zeros((3, 3)), abs(float(torch.linalg.det(graph.cell[0])))
    for i, j in np.ndindex(3, 3):
        strain = torch.zeros(1, 3, 3, dtype=torch.float64)
        strain[0, i, j] += h / 2
        strain[0, j, i] += h / 2
        stress[i, j] = (energy(graph.strained(strain)) - energy(graph.strained(-strain))) / (2 * h * volume)
    return forces, stress

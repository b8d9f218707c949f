"""Sums of Coulomb's law against published Madelung constants, another package, and direct sums."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from torch import Tensor

import molequi as mq
from molequi.errors import DataError
from molequi.nn import coulomb, coulomb_matrix, coulomb_potential
from molequi.nn.pair_energies import COULOMB

NARROW = 0.25  # Å: so narrow that neighbors do not overlap, and the charges are points for one another


def as_graph(atoms: Atoms, **fields: object) -> mq.Graph:
    cell = atoms.cell.array if atoms.pbc.any() else None
    return mq.Graph.single(atoms.positions, atoms.numbers, cell=cell, pbc=atoms.pbc, **fields)


def random_charges(graph: mq.Graph, *, neutral: bool, seed: int = 0) -> Tensor:
    q = torch.randn(graph.num_nodes, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return q - q.mean() if neutral else q


def energy(charges: Tensor, graph: mq.Graph, width: float) -> float:
    return float(0.5 * (charges * coulomb_potential(charges, graph, width)).sum())


@pytest.mark.parametrize(
    ("name", "structure", "a", "per_cell", "constant"),
    [  # per distance of neighbors; Borwein, Borwein and Taylor 1985; Sakamoto 1958
        ("NaCl", "rocksalt", 5.64, 1 / 2, 1.74756459463),
        ("CsCl", "cesiumchloride", 4.12, math.sqrt(3) / 2, 1.76267477307),
        ("ZnS", "zincblende", 5.42, math.sqrt(3) / 4, 1.63805505339),
    ],
)
@pytest.mark.parametrize("cubic", [False, True])
def test_madelung_constants(name, structure, a, per_cell, constant, cubic):
    atoms = bulk(name, structure, a=a, cubic=cubic and structure != "cesiumchloride")
    charges = torch.tensor([[1.0] if s in ("Na", "Cs", "Zn") else [-1.0] for s in atoms.symbols]).double()
    potential = coulomb_potential(charges, as_graph(atoms), NARROW) / COULOMB
    found = -(charges * potential) * per_cell * a
    assert torch.allclose(found, torch.full_like(found, constant), atol=1e-9)


def rattled(pbc: bool | list[bool] = True, cubic: bool = False, size: int = 1) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=cubic).repeat(size)
    atoms.set_cell(
        atoms.cell.array + np.random.default_rng(0).normal(scale=0.2, size=(3, 3)), scale_atoms=True
    )
    atoms.rattle(0.1, seed=1)
    atoms.pbc = pbc
    return atoms


def test_two_gaussians_in_vacuum():
    graph = mq.Graph.single([[0, 0, 0], [0, 1.3, 0]], ["H", "H"])
    charges = torch.tensor([[0.7], [-0.4]], dtype=torch.float64)
    wanted = COULOMB * 0.7 * -0.4 * math.erf(1.3 / 1.6) / 1.3
    assert energy(charges, graph, 0.8) == pytest.approx(wanted, rel=1e-14)
    far = mq.Graph.single([[0, 0, 0], [0, 50.0, 0]], ["H", "H"])
    assert energy(charges, far, 0.8) == pytest.approx(COULOMB * 0.7 * -0.4 / 50, rel=1e-14)


def test_atoms_in_one_place_have_finite_slopes():
    graph = mq.Graph.single([[0, 0, 0], [0, 0, 0]], ["H", "H"])
    pos = graph.pos.clone().requires_grad_()
    value = coulomb_potential(torch.ones(2, 1), graph.replace(pos=pos), 1.0).sum()
    (slope,) = torch.autograd.grad(value, pos)
    assert value.item() == pytest.approx(2 * COULOMB / math.sqrt(math.pi)) and bool((slope == 0).all())


@pytest.mark.parametrize("neutral", [True, False])
def test_crystals_against_torch_pme(neutral):
    from torchpme import EwaldCalculator
    from torchpme.potentials import CoulombPotential

    atoms = rattled(size=2)
    graph = as_graph(atoms)
    charges = random_charges(graph, neutral=neutral)
    smearing, cutoff, width = 0.9, 7.0, 0.2
    edges = mq.connect(graph, cutoff)
    calculator = EwaldCalculator(
        CoulombPotential(smearing), lr_wavelength=smearing / 4, full_neighbor_list=True
    )
    other = calculator.to(torch.float64)(
        charges, graph.cell[0], graph.pos, edges.edge_index.T.flip(1), edges.edge_vectors().norm(dim=1)
    )  # points, ½ potential in e/Å
    # The background of points and that of Gaussians differ by the mean of 1/r - erf(r/2σ)/r over the cell.
    volume = torch.linalg.det(graph.cell[0]).abs()
    other = COULOMB * (2 * other + 4 * math.pi * width**2 / volume * charges.sum())
    found = coulomb_potential(charges, graph, width)
    assert torch.allclose(found, other, atol=1e-6), float((found - other).abs().max())


@pytest.mark.parametrize("neutral", [True, False])
def test_slab_is_a_sum_over_its_images(neutral):
    """The potential of rings of images, less that of a point whose potential defines the zero."""
    cell = np.diag([5.0, 6.0, 0.0])
    cell[1, 0] = 1.0
    positions = np.array([[0.3, 0.2, 0.1], [2.9, 2.2, 1.7], [1.5, 4.0, -0.9]])
    atoms = Atoms("NaClNa", positions, cell=cell, pbc=[True, True, False])
    graph = as_graph(atoms)
    charges = random_charges(graph, neutral=neutral)
    width = 0.6
    found = coulomb_potential(charges, graph, width)[:, 0] / COULOMB
    # Σ over two-dimensional reciprocal vectors (Parry 1975), for Gaussians of width √2 σ together.
    basis = 2 * math.pi * np.linalg.inv(cell[:2, :2]).T
    area = abs(np.linalg.det(cell[:2, :2]))
    wanted = np.zeros(3)
    q, s = charges[:, 0].numpy(), 2 * width
    from scipy.special import erf, erfc

    for i in range(3):
        for j in range(3):
            d = positions[i] - positions[j]
            total = (
                -2
                * math.pi
                / area
                * (d[2] * erf(d[2] / s) + s / math.sqrt(math.pi) * math.exp(-((d[2] / s) ** 2)))
            )
            for m in range(-15, 16):
                for n in range(-15, 16):
                    k = m * basis[0] + n * basis[1]
                    norm = np.linalg.norm(k)
                    if 0 < norm < 14:
                        cosine = math.cos(k @ d[:2])
                        both = sum(
                            math.exp(sign * norm * d[2]) * erfc(norm * s / 2 + sign * d[2] / s)
                            for sign in (1, -1)
                        )
                        total += math.pi / area / norm * cosine * both
            wanted[i] += q[j] * total - (q[j] / (math.sqrt(math.pi) * width) if i == j else 0)
    assert np.allclose(found.numpy(), wanted, atol=1e-7)


def test_vacuum_of_a_slab_does_not_matter(monkeypatch):
    graph = as_graph(rattled([True, True, False], cubic=True))
    charges = random_charges(graph, neutral=False)
    values = []
    for gap in (coulomb.GAP, 2 * coulomb.GAP, 1.0):
        monkeypatch.setattr(coulomb, "GAP", gap)
        values.append(energy(charges, graph, 0.7))
    assert values[0] == pytest.approx(values[1], abs=1e-7)
    assert values[0] != pytest.approx(values[2], abs=1e-4)  # the control


def test_supercell_has_the_same_energy_per_atom():
    one = as_graph(rattled())
    four = as_graph(rattled().repeat((2, 1, 2)))
    charges = random_charges(one, neutral=False)
    assert energy(charges.repeat(4, 1), four, 0.8) == pytest.approx(4 * energy(charges, one, 0.8), rel=1e-10)


def test_choice_of_lattice_vectors_does_not_matter():
    atoms = rattled()
    other = atoms.copy()
    other.set_cell(np.array([[1, 1, 0], [0, 1, 0], [-1, 2, 1]]) @ atoms.cell.array)
    charges = random_charges(as_graph(atoms), neutral=False)
    one, two = (coulomb_potential(charges, as_graph(a), 0.8) for a in (atoms, other))
    assert torch.allclose(one, two, atol=1e-10)


def test_matrix_and_potential_agree_in_a_mixed_batch():
    atoms = [rattled(), rattled(False), rattled([True, True, False], cubic=True), rattled(False, cubic=True)]
    batch = mq.collate([mq.Graph.single(a.positions, a.numbers, cell=a.cell.array, pbc=a.pbc) for a in atoms])
    charges = torch.cat([random_charges(batch, neutral=False, seed=k) for k in (0, 1)], dim=1)
    together = coulomb_potential(charges, batch, 0.7)
    matrix, rows, members = coulomb_matrix(batch, 0.7)
    start = 0
    for k, one in enumerate(atoms):
        own = charges[start : start + len(one)]
        alone = coulomb_potential(own, as_graph(one), 0.7)
        size = len(one)
        itself = COULOMB / (math.sqrt(math.pi) * 0.7) * own
        assert torch.allclose(together[start : start + size], alone, atol=1e-10)
        assert torch.allclose(matrix[k, :size, :size] @ own - itself, alone, atol=1e-9)
        assert bool((matrix[k, size:] == 0).all()) and int(members[k].sum()) == size
        assert rows[k, :size].tolist() == list(range(start, start + size))
        start += size


def test_wires_and_planes_are_refused():
    graph = as_graph(rattled([True, False, False]))
    with pytest.raises(DataError, match="structure 0 of the batch is periodic in one direction"):
        coulomb_potential(torch.ones(2, 1), graph, 1.0)
    with pytest.raises(DataError, match="structures of 2 dimensions; wanted three"):
        coulomb_matrix(mq.Graph.single([[0.0, 0.0], [1.0, 0.0]]), 1.0)

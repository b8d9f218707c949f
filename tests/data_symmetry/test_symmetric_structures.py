"""Less symmetry in a label than in its structure: when it is one, and when it is round-off, noise or a structure that is nearly symmetric."""

import torch

from molequi import Dataset, Graph
from molequi.data_symmetry import symmetry_test
from molequi.quantities import Quantity
from molequi.symmetry import random_orthogonal

from .test_symmetry_test import FEW, Z, clouds, forced

METHANE = 0.63 * torch.tensor(
    [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64
)
WATER = torch.tensor([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]], dtype=torch.float64)


def turned(pos, z, label, generator, name="forces"):
    R = random_orthogonal(3, generator=generator)
    return Graph.single(pos @ R.T, z, targets={name: label @ R.T})


def row(graphs, **quantities):
    (check,) = (
        c
        for c in symmetry_test(Dataset(graphs, quantities=quantities), groups=("SO(3)",), **FEW).tests
        if c.name == "stabilizers"
    )
    return check


def test_round_off_of_zero_is_no_label_of_less_symmetry():
    generator = torch.Generator().manual_seed(0)
    charge = torch.tensor([-0.4, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    graphs = []
    for _ in range(40):
        pos = (
            METHANE
            * (1 + 0.05 * torch.randn(1, generator=generator, dtype=torch.float64))
            @ random_orthogonal(3, generator=generator)
        )
        graphs.append(Graph.single(pos, [6, 1, 1, 1, 1], targets={"dipole": (charge @ pos)[None]}))
    assert 0 < max(float(g.targets["dipole"].abs().max()) for g in graphs) < 1e-15
    assert row(graphs).verdict == "0 of 40 symmetric structures"


def test_noise_of_forces_is_no_label_of_less_symmetry():
    """Triatomic molecules, which are all flat: noise has components across, as large as what the fit leaves along."""
    generator = torch.Generator().manual_seed(0)
    graphs, pull = [], torch.randn(60, 3, 3, generator=generator, dtype=torch.float64)
    for noise in pull:
        pos = (
            WATER + 0.08 * torch.cat([torch.randn(3, 2, generator=generator), torch.zeros(3, 1)], 1).double()
        )
        graphs.append(turned(pos, [8, 1, 1], pos - pos.mean(0) + 0.1 * noise, generator))
    found = row(graphs)
    assert not found.broken and "of 60 symmetric structures" in found.verdict
    across = torch.tensor([0, 0, 1.0], dtype=torch.float64) * torch.tensor(
        [[1.0], [-1], [0]], dtype=torch.float64
    )
    signs = torch.randint(2, (60,), generator=generator) * 2 - 1
    out = [
        turned(WATER * (1 + 0.01 * k), [8, 1, 1], WATER + 0.3 * s * across, generator)
        for k, s in enumerate(signs.tolist())
    ]
    assert row(out).broken, "a pair that twists out of the plane, one way or the other"


def test_a_displaced_atom_is_no_symmetric_structure():
    """Finite differences: the structure is nearly symmetric, and its forces are of that displacement."""
    generator = torch.Generator().manual_seed(0)
    angle = 2 * torch.pi * torch.arange(12, dtype=torch.float64) / 12
    ring = 1.7 * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1)
    graphs = []
    for k in range(40):
        push = torch.zeros(12, 3, dtype=torch.float64)
        push[k % 12, k % 2] = 0.001
        graphs.append(turned(ring + push, [6] * 12, -20 * push, generator))
    found = row(graphs)
    assert not found.broken


def test_one_symmetric_structure_does_not_decide():
    graphs = list(forced(60))
    flat = torch.tensor(
        [[0, 0, 0], [1.0, 0, 0], [2.2, 0.3, 0], [3, 1, 0], [0.5, 2, 0], [1.5, 1.6, 0]], dtype=torch.float64
    )
    graphs[5] = Graph.single(flat, Z, targets={"forces": 9 * clouds(1, 0)[2][0]})
    found = row(graphs)
    assert not found.broken and found.verdict.startswith("1 of 1 symmetric structures")


def test_tensors_and_charges():
    """A polarizability that is no sphere in methane; charges of hydrogens that differ."""
    generator = torch.Generator().manual_seed(0)
    graphs, even = [], []
    for k in range(40):
        R = random_orthogonal(3, generator=generator)
        pos = METHANE * (1 + 0.002 * k)
        long = torch.diag(1.0 + torch.eye(3, dtype=torch.float64)[k % 3])
        for found, tensor in ((graphs, long), (even, (1 + 0.01 * k) * torch.eye(3, dtype=torch.float64))):
            found.append(
                Graph.single(pos @ R.T, [6, 1, 1, 1, 1], targets={"polarizability": (R @ tensor @ R.T)[None]})
            )
    assert row(graphs).broken and not row(even).broken
    load = Quantity(name="load", per="node")
    for odd in (0.0, 1.0):
        charged = [
            Graph.single(
                g.pos, g.z, targets={"load": torch.tensor([0, 1.0 + odd, 1, 1, 1]).double() + 0.01 * k}
            )
            for k, g in enumerate(graphs)
        ]
        assert row(charged, load=load).broken == bool(odd)


def test_how_many_structures_were_searched_is_said():
    found = row(forced(400))
    assert found.reason == "no symmetric structure found (300 of 400 were searched)"

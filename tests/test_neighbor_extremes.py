"""Neighbor lists of extreme cells and positions: right, or refused with a sentence; the process never dies."""

import numpy as np
import pytest
from ase import Atoms

from molequi import Graph, connect
from molequi.errors import DataError


def edges(graph):
    """Sender, receiver and lattice steps, in an order of their own."""
    shift = (
        graph.shift.round().int().tolist()
        if graph.shift is not None
        else [[0, 0, 0]] * graph.edge_index.shape[1]
    )
    return sorted((j, i, *s) for (j, i), s in zip(graph.edge_index.T.tolist(), shift))


def by_hand(atoms, cutoff, reach=8):
    """All pairs of all images within so many lattice vectors, without any list of cells."""
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1) if p else [0] for p in atoms.pbc]), -1)
    out = []
    for step in steps.reshape(-1, 3):
        vectors = atoms.positions[:, None] + step @ atoms.cell.array - atoms.positions[None]
        for j, i in np.argwhere(np.linalg.norm(vectors, axis=2) < cutoff):
            if i != j or step.any():
                out.append((int(j), int(i), *map(int, step)))
    return sorted(out)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([2.6, 2000, 2000], True),
        ([2000, 2.6, 2000], True),
        ([5, 5, 5e5], True),
        ([2.6, 2.6, 3e6], True),
        ([[2.6, 0, 0], [900, 2000, 0], [-300, 100, 1500]], True),
        ([2.6, 3000, 3000], (True, True, False)),
        ([2.6, 300, 3000], (True, False, True)),
    ],
)
def test_cells_that_are_thin_in_one_direction_and_long_in_others(cell, pbc):
    random = np.random.default_rng(0)
    atoms = Atoms("H12", cell=cell, pbc=pbc)
    atoms.positions = random.uniform(-6, 6, (12, 3)) + random.integers(-1, 2, (12, 3)) @ atoms.cell.array * [
        *np.broadcast_to(pbc, 3)
    ]
    for cutoff in (2.0, 5.1):
        graph = Graph.single(atoms.positions, atoms.numbers, cell=atoms.cell.array, pbc=atoms.pbc)
        found = edges(connect(graph, cutoff))
        assert found == by_hand(atoms, cutoff)
        assert found


def test_a_tiny_cell_is_refused_before_it_fills_the_memory():
    for size in (0.03, 0.003):
        graph = Graph.single([[0, 0, 0]], ["H"], cell=np.eye(3) * size, pbc=True)
        with pytest.raises(
            DataError, match=r"lattice vectors of 0\.03|0\.003.*too many for memory; is the unit"
        ):
            connect(graph, 5.0)
    small = Graph.single([[0, 0, 0]], ["H"], cell=np.eye(3) * 1.5, pbc=True)  # the control
    assert connect(small, 5.0).edge_index.shape[1] == len(by_hand(Atoms("H", cell=[1.5] * 3, pbc=True), 5.0))


@pytest.mark.parametrize("cell", [None, np.eye(3) * 20])
def test_positions_without_digits_are_refused(cell):
    near = np.array([[0, 0, 0], [0.9, 0, 0]])

    def made(shift):
        return Graph.single(near + shift, ["H", "H"], cell=cell, pbc=cell is not None)

    with pytest.raises(DataError, match=r"atom \d is 1e\+10 Å from the origin.*move the structure"):
        connect(made(1e10), 5.0)
    assert connect(made(1e6), 5.0).edge_index.shape[1] == 2


def test_a_pair_at_exactly_the_cutoff_is_no_edge_with_and_without_periodicity():
    for cell in (None, np.eye(3) * 100):
        at = Graph.single([[0, 0, 0], [5.0, 0, 0]], ["H", "H"], cell=cell, pbc=cell is not None)
        assert connect(at, 5.0).edge_index.shape[1] == 0
        assert connect(at, 5.000001).edge_index.shape[1] == 2
    points = Graph.single([[0, 0, 0], [5.0, 0, 0], [2.0, 0, 0]], [0, 0, 0])
    assert connect(points, 5.0, k=2).edge_index.shape[1] == 4
    assert connect(points, 5.0).edge_index.shape[1] == 4

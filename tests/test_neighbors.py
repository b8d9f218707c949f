"""Against a brute-force search that knows no cleverness, in every mixture of periodic directions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molequi.errors import DataError
from molequi.graph import Graph, collate
from molequi.neighbors import connect


def brute_force(graph: Graph, cutoff: float) -> set[tuple]:
    """Every pair and image within the cutoff; images as far as the shortest height of the cell can require."""
    pos, found = graph.pos.numpy(), set()
    cell = np.eye(graph.dim) if graph.cell is None else graph.cell[0].numpy().copy()
    flags = np.zeros(graph.dim, bool) if graph.pbc is None else graph.pbc[0].numpy()
    reach = [0] * graph.dim
    for k in np.flatnonzero(flags):
        others = cell[[m for m in np.flatnonzero(flags) if m != k]]
        normal = cell[k] - (np.linalg.pinv(others) @ others).T @ cell[k] if len(others) else cell[k]
        spread = np.abs(pos - pos[:1]).sum(1).max() * 2
        reach[k] = int(np.ceil((cutoff + spread) / np.linalg.norm(normal))) + 1
    for steps in itertools.product(*(range(-r, r + 1) for r in reach)):
        offset = np.array(steps) @ np.where(flags[:, None], cell, 0.0)
        vec = pos[None] + offset - pos[:, None]                                     # [i, j]
        close = np.linalg.norm(vec, axis=-1) < cutoff
        for i, j in np.argwhere(close):
            if i != j or any(steps):
                found.add((int(j), int(i), *steps))
    return found


def as_set(graph: Graph) -> set[tuple]:
    shift = np.zeros((graph.edge_index.shape[1], graph.dim)) if graph.shift is None else graph.shift.numpy()
    rows = [(*e, *s) for e, s in zip(graph.edge_index.T.tolist(), shift.astype(int).tolist())]
    assert len(rows) == len(set(rows)), "an edge twice"
    return set(rows)


@pytest.mark.parametrize("pbc", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("seed", range(4))
def test_all_mixtures_of_periodicity(pbc, seed):
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) + 2.5 * np.eye(3)
    if seed % 2:
        cell[0] *= -1                                                                # left-handed
    graph = Graph.single(rng.uniform(-2, 4, size=(5, 3)), [6] * 5, cell=cell, pbc=pbc)
    assert as_set(connect(graph, 3.3)) == brute_force(graph, 3.3)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.5, 4.0), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_random_cells(seed, n, cutoff, pbc):
    rng = np.random.default_rng(seed)
    cell = rng.normal(size=(3, 3)) * 0.7 + 2.2 * np.eye(3)
    if abs(np.linalg.det(cell)) < 2.0:
        cell = 2.2 * np.eye(3)
    graph = Graph.single(rng.uniform(-3, 3, size=(n, 3)), [6] * n, cell=cell, pbc=pbc)
    assert as_set(connect(graph, cutoff)) == brute_force(graph, cutoff)


def test_one_atom_in_a_cell_smaller_than_the_cutoff():
    graph = connect(Graph.single([[0.3, 0.1, 0.2]], [14], cell=2.0 * torch.eye(3), pbc=True), 5.0)
    steps = [s for s in itertools.product(range(-3, 4), repeat=3) if 0 < 4 * sum(x * x for x in s) < 25]
    assert graph.edge_index.shape[1] == len(steps)


def test_zero_row_in_a_direction_that_is_not_periodic():
    cell = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 0]])
    graph = Graph.single([[0, 0, 0], [1.0, 1.0, 1.0]], [6, 6], cell=cell, pbc=[True, True, False])
    assert as_set(connect(graph, 3.2)) == brute_force(graph, 3.2)


@pytest.mark.parametrize("dim", [1, 2, 4, 5])
def test_any_dimension(dim):
    rng = np.random.default_rng(dim)
    graph = Graph.single(rng.normal(size=(30, dim)))
    assert as_set(connect(graph, 1.2)) == brute_force(graph, 1.2) and len(brute_force(graph, 1.2)) > 0


def test_batch_equals_single_and_is_sorted_by_receiver():
    rng = np.random.default_rng(0)
    graphs = [Graph.single(rng.normal(size=(n, 3)) * 2, [6] * n, cell=4 * np.eye(3), pbc=n % 2 == 0) for n in (1, 4, 7, 2)]
    batch = connect(collate(graphs), 3.0)
    joined = collate([connect(g, 3.0) for g in graphs])
    assert torch.equal(batch.edge_index, joined.edge_index) and torch.equal(batch.shift, joined.shift)
    assert (batch.edge_index[1].diff() >= 0).all()


def test_no_neighbours():
    graph = connect(Graph.single([[0.0, 0, 0], [9.0, 0, 0]], [1, 1]), 3.0)
    assert graph.edge_index.shape == (2, 0) and graph.edge_vectors().shape == (0, 3)


@pytest.mark.parametrize("call, words", [
    (lambda g: connect(g, 0.0), "positive distance"),
    (lambda g: connect(g, float("nan")), "positive distance"),
    (lambda g: connect(g.replace(cell=torch.eye(3)[None], pbc=torch.ones(1, 3, dtype=torch.bool)), None), "infinitely many"),
    (lambda g: connect(g.replace(pos=g.pos * float("inf")), 3.0), "not finite"),
    (lambda g: connect(Graph.single([[0.0, 0.0]], cell=torch.eye(2), pbc=True), 1.0), "3 dimensions"),
])
def test_bad_searches_are_refused(call, words):
    with pytest.raises(DataError, match=words):
        call(Graph.single([[0.0, 0, 0], [1.0, 0, 0]], [1, 1]))


def test_atoms_that_have_flown_apart():
    """Far away is no reason to die: an exploding simulation must reach its own error."""
    assert connect(Graph.single([[0.0, 0, 0], [1e9, 0, 0], [0, 1.0, 0]], [6, 8, 1]), 4.5).edge_index.shape[1] == 2
    slab = Graph.single([[0.0, 0, 0], [0, 0, 1e6]], [6, 6], cell=3 * torch.eye(3), pbc=[True, True, False])
    with pytest.raises(DataError, match="flown apart"):
        connect(slab, 4.5)

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


@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_k_nearest_are_those_of_a_sorted_table(dim, k):
    pos = np.random.default_rng(k).normal(size=(25, dim))
    graph = connect(Graph.single(pos), None, k)
    distance = np.linalg.norm(pos[None] - pos[:, None], axis=-1) + np.diag(np.full(25, np.inf))
    wanted = {(int(j), i) for i in range(25) for j in np.argsort(distance[i])[:min(k, 24)]}
    assert set(map(tuple, graph.edge_index.T.tolist())) == wanted
    assert graph.k == k and bool((graph.edge_index[1].diff() >= 0).all())


def test_ties_are_all_taken_whatever_the_order_and_the_rotation():
    """A square grid: the four nearest are equally far, so that k = 1 … 4 are the same graph."""
    from molequi.symmetry import random_orthogonal

    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 2, indexing="ij"), -1).reshape(-1, 2)
    counts = []
    for k in (1, 2):
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(16)
            turn = random_orthogonal(2, generator=torch.Generator().manual_seed(seed)).numpy()
            edges = connect(Graph.single((grid @ turn.T + 3.3)[order]), None, k).edge_index.numpy()
            counts.append(frozenset((int(order[j]), int(order[i])) for j, i in edges.T))
    assert len(set(counts)) == 1 and len(counts[0]) == 48
    coincident = connect(Graph.single(np.zeros((5, 3))), None, 2)
    assert coincident.edge_index.shape[1] == 20                      # all are equally far: 0
    assert connect(Graph.single([[0.0, 0, 0]]), None, 3).edge_index.shape == (2, 0)


def test_k_nearest_within_a_cutoff():
    graph = connect(Graph.single([[0.0], [1.0], [1.5], [9.0]]), 2.0, 1)
    assert graph.edge_index.T.tolist() == [[1, 0], [2, 1], [1, 2]]


@pytest.mark.parametrize("make, words", [
    (lambda g: connect(g, None, 0), "k 0: wanted a positive number"),
    (lambda g: connect(g, None, 1.5), "k 1.5"),
    (lambda g: connect(Graph.single(np.zeros((1, 3)), [1], cell=np.eye(3), pbc=True), 2.0, 3), "k=3 nearest of a periodic"),
    (lambda g: connect(g, 1.1), "nodes 1 and 0 are a pair .* 2 apart, which is no edge"),
    (lambda g: connect(g.replace(cell=torch.eye(3).double()[None] * 9, pbc=torch.ones(1, 3, dtype=torch.bool)), 3.0), "many images"),
])
def test_pairs_and_k_that_cannot_be(make, words):
    pair = Graph.single([[0.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]], pair_index=[[1, 0], [0, 1]], pair_attr=[[1.0], [1.0]])
    with pytest.raises(DataError, match=words):
        make(pair)

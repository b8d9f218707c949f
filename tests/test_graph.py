import math

import pytest
import torch

from molequi.errors import DataError
from molequi.graph import Graph, collate, separate
from molequi.neighbors import connect


def water(**given) -> Graph:
    return Graph.single([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [8, 1, 1], **given)


def test_single_graph_is_a_batch_of_one():
    graph = water(charge=1, spin=2)
    assert (graph.num_graphs, graph.num_nodes, graph.dim) == (1, 3, 3)
    assert graph.pos.dtype == torch.float64 and graph.charge.tolist() == [1.0] and graph.spin.tolist() == [2.0]


@pytest.mark.parametrize("make, words", [
    (lambda: Graph.single([[0.0, 0.0, float("nan")]]), "position of atom 0"),
    (lambda: Graph.single(torch.zeros(0, 3)), "without atoms"),
    (lambda: Graph.single([0.0, 1.0]), r"wanted \(N, D\)"),
    (lambda: Graph.single([[0.0, 0, 0]], [1, 2]), "atomic numbers of shape"),
    (lambda: Graph.single([[0.0, 0, 0]], pbc=True), "needs a lattice vector"),
    (lambda: Graph.single([[0.0, 0, 0]], cell=torch.zeros(3, 3), pbc=[True, False, False]), "needs a lattice vector"),
    (lambda: Graph.single([[0.0, 0, 0]], cell=torch.eye(2), pbc=True), "cell of shape"),
    (lambda: Graph.single([[0.0, 0, 0]], cell=[[1.0, 0, 0], [2.0, 0, 0], [0, 0, 1.0]], pbc=True), "needs a lattice vector"),
    (lambda: Graph.single([[0.0, 0, 0]], cell=torch.full((3, 3), float("inf")), pbc=True), "non-finite"),
    (lambda: water().edge_vectors(), "no edges yet"),
    (lambda: collate([]), "empty"),
    (lambda: collate([water(), connect(water(), 2.0)]), "connected"),
    (lambda: collate([water(charge=1), water()]), "'charge'"),
    (lambda: collate([water(), Graph.single([[0.0, 0.0]])]), "dimensions"),
    (lambda: collate([water(), water().replace(targets={"energy": torch.zeros(1)})]), "targets"),
])
def test_bad_graphs_are_refused(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_symbols_are_elements_too():
    assert Graph.single([[0.0, 0, 0], [0.96, 0, 0]], ["O", "H"]).z.tolist() == [8, 1]


def test_collate_and_separate_are_inverse():
    periodic = Graph.single([[0.1, 0.2, 0.3]], [14], cell=3 * torch.eye(3), pbc=True)
    parts = [connect(g, 4.0).replace(targets={"energy": torch.rand(1), "forces": torch.rand(g.num_nodes, 3)})
             for g in (water(), periodic, water(), Graph.single([[0.0, 0, 0]], [1]))]
    batch = collate(parts)
    assert batch.num_graphs == 4 and batch.counts.tolist() == [3, 1, 3, 1] and batch.cutoff == 4.0
    assert (batch.edge_index[1].diff() >= 0).all(), "edges must stay sorted by receiver"
    again = separate(batch, per_node=["forces"])
    for a, b in zip(parts, again):
        assert torch.equal(a.pos, b.pos) and torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.edge_vectors(), b.edge_vectors())
        assert all(torch.equal(a.targets[k], b.targets[k]) for k in a.targets)


def test_strain_derivative_of_a_spring_is_its_virial():
    graph = connect(Graph.single([[0.0, 0, 0], [1.0, 2.0, 0.5]], [1, 1], cell=9 * torch.eye(3), pbc=True), 4.0)
    strain = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    energy = 0.25 * graph.strained(strain).edge_vectors().square().sum()          # two directed edges of one pair: r²/2
    (virial,) = torch.autograd.grad(energy, strain)
    r = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert torch.allclose(virial[0], torch.outer(r, r))


def test_all_pairs_have_no_cutoff():
    assert connect(water(), None).cutoff == math.inf and connect(water(), None).edge_index.shape == (2, 6)

"""The check of distances finds the same pairs whether structures are searched one by one or together."""

import numpy as np
import pytest
import torch

from molequi.data.checks import TOO_CLOSE, short_pairs
from molequi.graph import Graph
from molequi.neighbors import connect


@pytest.mark.parametrize("atoms", [2, 5, 64, 65])
def testshort_pairs_are_those_of_the_neighbour_search(atoms):
    random = np.random.default_rng(atoms)
    width = 2.0 * atoms  # so that some structures have a short pair, and others none
    graphs = [
        Graph.single(random.uniform(0, width if k % 2 else 0.9, size=(atoms, 3)), [6] * atoms, targets={})
        for k in range(40)
    ]
    graphs += [
        Graph.single([[0.0, 0, 0]], [1]),
        Graph.single(graphs[0].pos, [6] * atoms, cell=np.eye(3) * 50, pbc=True),
    ]
    found = short_pairs(graphs)
    assert 0 < len(found) < len(graphs)
    for k, graph in enumerate(graphs):
        linked = connect(graph, TOO_CLOSE)
        assert (k in found) == bool(linked.edge_index.shape[1])
        if k in found:
            shortest, j, i = found[k]
            assert shortest == pytest.approx(linked.edge_vectors().norm(dim=1).min().item(), abs=1e-12)
            assert (graph.pos[j] - graph.pos[i]).norm().item() == pytest.approx(shortest, abs=1e-12)


def test_an_image_counts_as_a_pair():
    graph = Graph.single([[0.0, 0, 0.01], [0, 0, 4.9]], [1, 1], cell=np.eye(3) * 5, pbc=True)
    assert short_pairs([graph])[0][0] == pytest.approx(0.11) and not short_pairs(
        [graph.replace(cell=None, pbc=None)]
    )
    assert not short_pairs(
        [graph.replace(z=torch.zeros(2, dtype=torch.int64))]
    )  # plain points may be anywhere

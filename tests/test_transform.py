"""One implementation of how group elements act on graphs, features and quantities of any rank."""

import pytest
import torch

from molequi.errors import ConfigError, DataError
from molequi.features import Features
from molequi.graph import FIELDS, Field, Graph, add_field, collate, separate
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.regular_graphs import regular
from molequi.symmetry import Group, Transform, group, infinitesimal, random_orthogonal

O3 = group("O(3)")


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def structures(count: int = 3) -> list[Graph]:
    torch.manual_seed(0)
    add_field("efield", per="graph", rank=1, unit="V/Å")
    add_field("bfield", per="graph", rank=1, pseudo=True)
    add_field("tensor", per="node", rank=2, channels=True)
    return [
        Graph.single(
            2 * normal(n, 3),
            torch.arange(n) % 3 + 1,
            cell=4 * torch.eye(3, dtype=torch.float64) + 0.1 * normal(3, 3),
            pbc=[True, True, False],
            vel=normal(n, 3),
            vec=normal(n, 2, 3),
            x=normal(n, 2),
            charge=1.0,
            efield=normal(3),
            bfield=normal(3),
            tensor=normal(n, 2, 3, 3),
        )
        for n in range(3, 3 + count)
    ]


def same(a: Graph, b: Graph, atol: float = 1e-12) -> None:
    assert list(a.values()) == list(b.values())
    for name, value in a.values().items():
        assert torch.allclose(value.double(), b.values()[name].double(), rtol=0, atol=atol), name
    assert torch.equal(a.edge_index, b.edge_index)


@pytest.mark.parametrize("proper", [True, False])
def test_a_batch_of_elements_is_each_element_on_its_own_graph(proper):
    graphs = [connect(g, 3.0) for g in structures()]
    generator = torch.Generator().manual_seed(1)
    elements = Transform.random(O3, 3, proper=proper, generator=generator)
    elements = Transform(rotations=elements.rotations, translations=normal(3, 3))
    assert elements.proper.tolist() == [proper] * 3
    got = separate(elements.graph(collate(graphs)))
    for k, graph in enumerate(graphs):
        one = Transform.single(elements.rotations[k], elements.translations[k])
        same(got[k], one.graph(graph))
        same(connect(got[k].without("edge"), 3.0), got[k])  # edges of an isometry are those of a new search
        assert one.graph(graph, keep_edges=False).edge_index is None


def test_a_permutation_renumbers_edges_as_a_new_search_does():
    graph = connect(structures()[2], 3.0)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = Transform.single(permutation=order).graph(graph)
    assert torch.equal(moved.z, graph.z[order]) and torch.equal(moved.tensor, graph.tensor[order])
    same(connect(moved.without("edge"), 3.0), moved)
    assert torch.allclose(
        moved.edge_vectors().norm(dim=1).sort()[0], graph.edge_vectors().norm(dim=1).sort()[0]
    )


@pytest.mark.parametrize("rank", range(4))
@pytest.mark.parametrize("pseudo", [False, True])
def test_values_of_any_rank(rank, pseudo):
    """Each spatial axis is multiplied by R: the same as an outer product of vectors that are multiplied one
    by one.
    """
    graph = collate(structures())
    elements = Transform.random(O3, 3, proper=False, generator=torch.Generator().manual_seed(2))
    for per, rows in (("graph", 3), ("node", graph.num_nodes)):
        q = Quantity(name="t", per=per, rank=rank, pseudo=pseudo) if rank < 3 else None
        what = q or Field(per=per, rank=rank, pseudo=pseudo)
        at = elements.rotations if per == "graph" else elements.rotations[graph.batch]
        value, wanted = torch.ones(rows, dtype=torch.float64), torch.ones(rows, dtype=torch.float64)
        for _ in range(rank):
            v = normal(rows, 3)
            value = value[..., None] * v.reshape(rows, *[1] * (value.ndim - 1), 3)
            turned = torch.einsum("nij,nj->ni", at, v)
            wanted = wanted[..., None] * turned.reshape(rows, *[1] * (wanted.ndim - 1), 3)
        wanted = -wanted if pseudo else wanted
        assert torch.allclose(elements.value(what, value, graph), wanted, atol=1e-12)
        one = Transform.single(elements.rotations[0])
        assert torch.allclose(one.value(what, value)[0], wanted[0], atol=1e-12)
        assert rank + pseudo == 0 or not torch.allclose(wanted, value)


def test_points_move_and_vectors_do_not():
    graph = collate(structures())
    moves = Transform(translations=normal(3, 3))
    at, vector = normal(graph.num_nodes, 3), normal(3, 3)
    place = Quantity(name="p", per="node", rank=1, point=True)
    assert torch.equal(moves.value(place, at, graph), at + moves.translations[graph.batch])
    assert torch.equal(moves.value(Quantity(name="v", rank=1), vector, graph), vector)
    image = moves.graph(graph)
    for name, value in graph.values().items():
        assert torch.equal(value, image.values()[name]) != (name == "pos"), name


def test_a_pseudovector_keeps_its_direction_under_inversion():
    graph = structures()[0]
    image = Transform.single(-torch.eye(3, dtype=torch.float64)).graph(graph)
    assert torch.equal(image.bfield, graph.bfield) and torch.equal(image.efield, -graph.efield)


def test_inverse():
    graph = connect(collate(structures()), 3.0)
    there = Transform(
        rotations=torch.stack([random_orthogonal(3) for _ in range(3)]), translations=normal(3, 3)
    )
    same(there.inverse().graph(there.graph(graph)), graph)
    same(
        Transform(translations=there.translations).inverse().graph(there.graph(graph)),
        connect(Transform(rotations=there.rotations).graph(graph).without("edge"), 3.0),
    )
    with pytest.raises(DataError, match="with a permutation"):
        Transform.single(permutation=torch.arange(3)).inverse()


def test_features_of_a_batch():
    graph = collate(structures())
    elements = Transform.random(O3, 3, proper=False, generator=torch.Generator().manual_seed(3))
    n = graph.num_nodes
    features = Features(
        blocks={"0e": normal(n, 4, 1), "1o": normal(n, 4, 3), "2e": normal(n, 2, 5), "1e": normal(n, 1, 3)},
        coordination=torch.ones(n),
    )
    whole = elements.features(features, graph)
    for k in range(3):
        mine = graph.batch == k
        part = Features(
            blocks={i: b[mine] for i, b in features.blocks.items()}, coordination=torch.ones(int(mine.sum()))
        )
        one = Transform.single(elements.rotations[k]).features(part)
        assert all(torch.allclose(whole.blocks[i][mine], one.blocks[i], atol=1e-12) for i in one.blocks)
    lengths = {i: (b.norm(dim=-1), whole.blocks[i].norm(dim=-1)) for i, b in features.blocks.items()}
    assert all(torch.allclose(*pair, atol=1e-12) for pair in lengths.values())


def test_an_infinitesimal_element_is_the_derivative_of_a_finite_one():
    graph = structures()[0]
    K = torch.tensor([[0.0, -0.3, 0.5], [0.3, 0.0, -0.7], [-0.5, 0.7, 0.0]], dtype=torch.float64)
    t, h = normal(3), 1e-5
    ends = [Transform.single(torch.linalg.matrix_exp(s * h * K), s * h * t).graph(graph) for s in (1.0, -1.0)]
    seen = 0
    for name, value in graph.values("node", "graph").items():
        if value.is_floating_point():
            slope = (getattr(ends[0], name) - getattr(ends[1], name)) / (2 * h)
            exact = infinitesimal(FIELDS[name], value, matrix=K, vector=t)
            assert torch.allclose(slope, exact, atol=1e-8), name
            seen += bool(exact.abs().max() > 0.1)
    assert seen == 7  # pos, cell, vel, vec, efield, bfield, tensor


def test_wrong_numbers_of_elements_and_regular_graphs_are_refused():
    graph = collate(structures())
    two = Transform.random(O3, 2, proper=True)
    with pytest.raises(DataError, match="2 elements of a group act on 3 graphs; wanted one for each graph"):
        two.graph(graph)
    with pytest.raises(DataError, match="2 elements of a group act on no graph"):
        two.value(Quantity(name="v", rank=1), normal(2, 3))
    with pytest.raises(DataError, match="permutation of a regular graph"):
        Transform.single(permutation=torch.arange(12)).graph(regular(connect(graph, 3.0)))
    with pytest.raises(ConfigError, match="has no reflections"):
        Transform.random(Group(name="SO(n)"), proper=False)


def test_nothing_but_identities_changes_nothing():
    graph = connect(collate(structures()), 3.0)
    same(Transform().graph(graph), graph, atol=0.0)
    assert Transform().to("cpu") == Transform() and Transform().proper.tolist() == [True]

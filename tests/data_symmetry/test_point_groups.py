"""Point groups of known molecules, and sets of vectors that break them."""

import itertools

import numpy as np
import pytest
import torch
from ase.build import molecule

from molequi.data_symmetry.point_groups import (
    add_symmetry_breaking_vector,
    point_group,
    symmetry_breaking_set,
    symmetry_operations,
)
from molequi.errors import ConfigError, DataError
from molequi.graph import Graph
from molequi.model import Model
from molequi.models import EGNN, Inputs
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.symmetry import Transform, group, random_orthogonal

# Orders of point groups as in any table of them: C2v, C3v, Td, D6h, D2h, D3d, C1.
ORDERS = {"H2O": 4, "NH3": 6, "CH4": 24, "C6H6": 24, "C2H4": 8, "C2H6": 12, "CH3CH2OH": 2}
SQUARE = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=torch.float64)


def named(name: str) -> Graph:
    atoms = molecule(name)
    return Graph.single(atoms.positions, atoms.numbers)


def cube() -> Graph:
    return Graph.single(torch.tensor(list(itertools.product((-1.0, 1.0), repeat=3))), [1] * 8)


def icosahedron() -> Graph:
    golden = (1 + 5**0.5) / 2
    corners = [(0.0, a, b * golden) for a in (-1, 1) for b in (-1, 1)]
    return Graph.single(torch.tensor([c[k:] + c[:k] for c in corners for k in range(3)]), [1] * 12)


def chiral() -> Graph:
    return Graph.single([[0.0, 0, 0], [1.1, 0, 0], [0, 1.4, 0], [0.2, 0.3, 1.7]], [6, 1, 8, 9])


def structures():
    yield from ((name, named(name), order) for name, order in ORDERS.items())
    yield from (
        ("cube", cube(), 48),
        ("icosahedron", icosahedron(), 120),
        ("square", Graph.single(SQUARE), 16),
        ("chiral", chiral(), 1),
    )


CASES = [pytest.param(*case[1:], id=case[0]) for case in structures()]


def posed(graph: Graph, seed: int) -> tuple[Graph, Transform]:
    generator = torch.Generator().manual_seed(seed)
    element = Transform.single(
        rotation=random_orthogonal(3, generator=generator),
        translation=torch.randn(3, generator=generator, dtype=torch.float64),
        permutation=torch.randperm(graph.num_nodes, generator=generator),
    )
    return element.graph(graph), element


def alike(found, wanted, tolerance) -> bool:
    """Two sets are the same."""
    gaps = (found[:, None] - wanted[None]).flatten(2).abs().amax(2)
    return (
        len(found) == len(wanted)
        and float(gaps.amin(1).max()) < tolerance
        and float(gaps.amin(0).max()) < tolerance
    )


@pytest.mark.parametrize(("graph", "order"), [*CASES, pytest.param(named("C60"), 120, id="C60")])
def test_point_groups(graph, order):
    found = point_group(graph)
    assert len(found) == order
    assert torch.allclose(found @ found.transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(found[0], torch.eye(3, dtype=torch.float64), atol=1e-6)
    products = (found[:, None] @ found[None]).flatten(0, 1)
    assert float((products[:, None] - found).abs().amax((2, 3)).amin(1).max()) < 0.02, "products belong to it"
    turned, element = posed(graph, order)
    there = element.rotations[0] @ found @ element.rotations[0].T
    assert alike(point_group(turned), there, 0.01)


@pytest.mark.parametrize("name", ["C6H6", "C2H6", "C2H4", "CH4"])
def test_of_a_structure_that_is_nearly_symmetric_a_group_is_found(name):
    """Some of the symmetries miss by less than the tolerance and some by more; what is found is a group, and its breaking set is whole."""
    orders = set()
    for seed in range(8):
        clean = named(name)
        graph = clean.replace(
            pos=clean.pos
            + 0.003 * torch.randn(clean.pos.shape, generator=torch.Generator().manual_seed(seed)).double()
        )
        found = symmetry_operations(graph)
        keys = {(tuple(order.tolist()), float(torch.linalg.det(turn)) > 0) for turn, order in found}
        assert all((tuple(p[k] for k in q), a == b) in keys for p, a in keys for q, b in keys)
        x = graph.pos - graph.pos.mean(0)
        assert all(float((x @ turn.T - x[order]).norm(dim=1).max()) <= 0.01 for turn, order in found)
        assert ORDERS[name] % len(found) == 0 and len(symmetry_breaking_set(graph)) % len(found) == 0
        orders.add(len(found))
    assert len(orders) > 1, "the noise is at the tolerance, so that some are lost"


def test_of_lines_and_points_some_turns_are_given():
    oxygen, hydroxyl, carbon = (
        Graph.single([[0.0, 0, 0]], ["O"]),
        Graph.single([[0.0, 0, 0], [0.6, 0.7, 0.2]], ["O", "H"]),
        named("CO2"),
    )
    for graph, turns in (
        (oxygen, 9),
        (hydroxyl, 4),
        (carbon, 7),
    ):  # of a point all that are tried; O-H has no inversion
        found = symmetry_operations(graph)
        x = graph.pos - graph.pos.mean(0)
        assert len(found) == turns and torch.equal(found[0][0], torch.eye(3, dtype=torch.float64))
        for turn, order in found:
            assert torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
            assert float((x @ turn.T - x[order]).abs().max()) < 0.01
    axial = Graph.single([[0.0, 0, 0]], ["O"], vel=[[0.0, 0, 1.0]])
    assert len(symmetry_operations(axial)) < 9


def test_the_cube_has_the_octahedral_group():
    assert alike(point_group(cube()), group("Oh").elements, 1e-12)


def test_what_is_given_belongs_to_the_structure():
    assert len(point_group(Graph.single(SQUARE, [1, 6, 1, 6]))) == 8
    assert len(point_group(Graph.single(SQUARE, x=[[1.0], [0.0], [0.0], [0.0]]))) == 4
    up, tangent = (
        torch.tensor([0.0, 0, 1]).expand(4, 3).double(),
        torch.stack([-SQUARE[:, 1], SQUARE[:, 0], SQUARE[:, 2]], dim=1),
    )
    assert len(point_group(Graph.single(SQUARE, vel=up))) == 8
    assert len(point_group(Graph.single(SQUARE, vel=tangent))) == 8  # C4h
    assert len(point_group(Graph.single(SQUARE, vec=torch.stack([up, tangent], dim=1)))) == 4
    edges = [[0, 1, 2, 3, 1, 2, 3, 0], [1, 2, 3, 0, 0, 1, 2, 3]]
    paired = [[1.0], [2.0], [1.0], [2.0]] * 2
    assert (
        len(point_group(Graph.single(SQUARE, pair_index=edges, pair_attr=paired))) == 8
    )  # the sides of a rectangle: D2h
    shaken = SQUARE + 0.02 * torch.tensor([[1.0, 0, 0], [0, 0.5, 0.3], [0, 0, 0], [0, 0, 0]])
    assert (
        len(point_group(Graph.single(shaken), 0.001)) == 1
        and len(point_group(Graph.single(shaken), 0.05)) == 16
    )


@pytest.mark.parametrize(("graph", "order"), CASES)
def test_symmetry_breaking_sets_turn_along_and_are_moved_by_every_symmetry(graph, order):
    vectors = symmetry_breaking_set(graph)
    assert len(vectors) % order == 0
    for s in point_group(graph)[1:]:
        assert float((vectors @ s.T - vectors).norm(dim=1).min()) > 0.2
        assert alike(vectors @ s.T, vectors, 0.02)
    turned, element = posed(graph, 7)
    assert alike(symmetry_breaking_set(turned), vectors @ element.rotations[0].T, 1e-9)


def test_numbers_of_numpy_are_numbers():
    assert torch.equal(
        add_symmetry_breaking_vector(named("H2O"), np.int64(1), np.float64(0.01)).vec,
        add_symmetry_breaking_vector(named("H2O"), 1).vec,
    )


def test_the_orbit_is_no_larger_than_it_must_be():
    assert (
        len(symmetry_breaking_set(Graph.single(SQUARE))) == 16
        and len(symmetry_breaking_set(cube())) == 48
        and len(symmetry_breaking_set(named("H2O"))) == 4
    )


def model_of(graph: Graph, vectors: int, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    elements = sorted(set(graph.z.tolist()))
    return Model(
        EGNN(elements=elements, cutoff=None, channels=16, layers=2, inputs=Inputs(node_vectors=vectors)),
        [Quantity(name="moved", per="node", rank=1, point=True)],
    ).double()


def ask(model, graph):
    return model(connect(graph, None))["moved"]


def test_the_law_with_a_broken_input():
    """f(g x, g b) = g f(x, b), for g of E(3); and f(x, s b) = s f(x, b) for symmetries of x, which is not f(x, b)."""
    graph = named("CH4")
    model = model_of(graph, 1).eval()
    given = add_symmetry_breaking_vector(graph)
    out = ask(model, given)
    turned, element = posed(given, 3)
    assert torch.allclose(ask(model, turned), element.value(model.quantities["moved"], out), atol=1e-10)
    centred, change = out - out.mean(0), float((out - graph.pos).abs().max())
    moved = [torch.cdist(centred @ s.T, centred).amin(1).max() for s in point_group(graph)[1:]]
    assert float(min(moved)) > 1e-3 * change, (
        "the answer is less symmetric than the structure: no symmetry but the identity leaves it"
    )
    strict = model_of(graph, 0).eval()
    out = ask(strict, graph) - ask(strict, graph).mean(0)  # the control
    exact = max(float(torch.cdist(graph.pos @ s.T, graph.pos).amin(1).max()) for s in point_group(graph))
    assert (
        max(float(torch.cdist(out @ s.T, out).amin(1).max()) for s in point_group(graph)) < 2 * exact + 1e-10
    )


def fit(model, graph, wanted, steps=150):
    graph = connect(graph, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = (model.train()(graph)["moved"] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_a_square_becomes_a_rectangle():
    """Without b the best answer is the mean over the group, the square between both rectangles; with it the rectangle, and the other one for
    the other half of the breaking set."""
    square, wanted = Graph.single(SQUARE), SQUARE * torch.tensor([1.3, 0.7, 1.0], dtype=torch.float64)
    bound = float((wanted - SQUARE).square().mean())
    assert 0.99 * bound < fit(model_of(square, 0), square, wanted) < 1.1 * bound
    model = model_of(square, 1)
    assert fit(model, add_symmetry_breaking_vector(square), wanted) < 0.01 * bound
    answers = [ask(model.eval(), add_symmetry_breaking_vector(square, which)) for which in range(16)]
    other = SQUARE * torch.tensor([0.7, 1.3, 1.0], dtype=torch.float64)
    told = [[float((a - w).square().mean()) < 0.02 * bound for w in (wanted, other)] for a in answers]
    assert sum(t == [True, False] for t in told) == 8 and sum(t == [False, True] for t in told) == 8


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: point_group(Graph.single([[0.0, 0], [1, 0], [0, 1]])), "found 1 in 2 dimensions"),
        (
            lambda: point_group(Graph.single(SQUARE, cell=torch.eye(3) * 9, pbc=True)),
            "in 3 dimensions, periodic",
        ),
        (
            lambda: point_group(Graph.single([[0.0, 0, 0], [1, 0, 0], [2.5, 0, 0]])),
            "all 3 atoms lie on a line or a point, within 0.01 Å",
        ),
        (lambda: symmetry_breaking_set(Graph.single([[0.0, 0, 0]])), "all 1 atoms lie on a line or a point"),
        (
            lambda: add_symmetry_breaking_vector(named("H2O"), 4),
            "index=4: the symmetry-breaking set of this structure has 4 vectors; wanted 0 to 3",
        ),
    ],
)
def test_faults(make, words):
    with pytest.raises(DataError, match=words):
        make()


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: point_group(SQUARE), "found Tensor; wanted a Graph"),
        (
            lambda: point_group(named("H2O"), 0.0),
            "tolerance=0.0: wanted the largest deviation of an atom in Å, above zero",
        ),
        (lambda: symmetry_breaking_set(named("H2O"), -1.0), "tolerance=-1.0: wanted"),
        (lambda: add_symmetry_breaking_vector(named("H2O"), 1.5), "index=1.5: wanted the index"),
        (lambda: add_symmetry_breaking_vector(named("H2O"), "1"), "index='1': wanted the index"),
    ],
)
def test_arguments(make, words):
    with pytest.raises(ConfigError, match=words):
        make()

"""Against a brute-force search that knows no cleverness, in every mixture of periodic directions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molequi.errors import DataError
from molequi.graph import Graph, collate
from molequi.model import Model
from molequi.models import BACKBONES, EGNN, Inputs, PaiNN
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.regular_graphs import regular, regular_if_full


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
        vec = pos[None] + offset - pos[:, None]  # [i, j]
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
        cell[0] *= -1  # left-handed
    graph = Graph.single(rng.uniform(-2, 4, size=(5, 3)), [6] * 5, cell=cell, pbc=pbc)
    assert as_set(connect(graph, 3.3)) == brute_force(graph, 3.3)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.floats(0.5, 4.0),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
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
    graphs = [
        Graph.single(rng.normal(size=(n, 3)) * 2, [6] * n, cell=4 * np.eye(3), pbc=n % 2 == 0)
        for n in (1, 4, 7, 2)
    ]
    batch = connect(collate(graphs), 3.0)
    joined = collate([connect(g, 3.0) for g in graphs])
    assert torch.equal(batch.edge_index, joined.edge_index) and torch.equal(batch.shift, joined.shift)
    assert (batch.edge_index[1].diff() >= 0).all()


def test_no_neighbours():
    graph = connect(Graph.single([[0.0, 0, 0], [9.0, 0, 0]], [1, 1]), 3.0)
    assert graph.edge_index.shape == (2, 0) and graph.edge_vectors().shape == (0, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda g: connect(g, 0.0), "positive distance"),
        (lambda g: connect(g, float("nan")), "positive distance"),
        (
            lambda g: connect(
                g.replace(cell=torch.eye(3)[None], pbc=torch.ones(1, 3, dtype=torch.bool)), None
            ),
            "infinitely many",
        ),
        (lambda g: connect(g.replace(pos=g.pos * float("inf")), 3.0), "not finite"),
        (lambda g: connect(Graph.single([[0.0, 0.0]], cell=torch.eye(2), pbc=True), 1.0), "3 dimensions"),
    ],
)
def test_bad_searches_are_refused(call, words):
    with pytest.raises(DataError, match=words):
        call(Graph.single([[0.0, 0, 0], [1.0, 0, 0]], [1, 1]))


def test_atoms_that_have_flown_apart():
    """Far away is no reason to die: an exploding simulation must reach its own error."""
    assert (
        connect(Graph.single([[0.0, 0, 0], [1e9, 0, 0], [0, 1.0, 0]], [6, 8, 1]), 4.5).edge_index.shape[1]
        == 2
    )
    slab = Graph.single([[0.0, 0, 0], [0, 0, 1e6]], [6, 6], cell=3 * torch.eye(3), pbc=[True, True, False])
    with pytest.raises(DataError, match="flown apart"):
        connect(slab, 4.5)


@pytest.mark.parametrize("dim", [2, 3, 4])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_k_nearest_are_those_of_a_sorted_table(dim, k):
    pos = np.random.default_rng(k).normal(size=(25, dim))
    graph = connect(Graph.single(pos), None, k)
    distance = np.linalg.norm(pos[None] - pos[:, None], axis=-1) + np.diag(np.full(25, np.inf))
    wanted = {(int(j), i) for i in range(25) for j in np.argsort(distance[i])[: min(k, 24)]}
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
    assert coincident.edge_index.shape[1] == 20  # all are equally far: 0
    assert connect(Graph.single([[0.0, 0, 0]]), None, 3).edge_index.shape == (2, 0)


def test_k_nearest_within_a_cutoff():
    graph = connect(Graph.single([[0.0], [1.0], [1.5], [9.0]]), 2.0, 1)
    assert graph.edge_index.T.tolist() == [[1, 0], [2, 1], [1, 2]]


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda g: connect(g, None, 0), "k 0: wanted a positive number"),
        (lambda g: connect(g, None, 1.5), "k 1.5"),
        (
            lambda g: connect(Graph.single(np.zeros((1, 3)), [1], cell=np.eye(3), pbc=True), 2.0, 3),
            "k=3 nearest of a periodic",
        ),
        (lambda g: connect(g, 1.1), "nodes 1 and 0 are a pair .* 2 apart, which is no edge"),
        (
            lambda g: connect(
                g.replace(cell=torch.eye(3).double()[None] * 9, pbc=torch.ones(1, 3, dtype=torch.bool)), 3.0
            ),
            "many images",
        ),
    ],
)
def test_pairs_and_k_that_cannot_be(make, words):
    pair = Graph.single(
        [[0.0, 0, 0], [2.0, 0, 0], [1.0, 0, 0]], pair_index=[[1, 0], [0, 1]], pair_attr=[[1.0], [1.0]]
    )
    with pytest.raises(DataError, match=words):
        make(pair)


# Regular graphs.

ALPHABET = ["H", "C", "O"]
OPTIONS = {
    "EGNN": dict(channels=8),
    "Equiformer": dict(channels=4, hidden=4, l_max=2),
    "GauntACE": dict(channels=4, l_max=2),
    "GroupConvNet": dict(channels=4, group="T"),
    "MACE": dict(channels=4, l_max=2, radial_hidden=(8,)),
    "NequIP": dict(channels=4, l_max=2),
    "SevenNet": dict(channels=4, l_max=2),
    "NequIPGNN": dict(channels=4, l_max=2),
    "PaiNN": dict(channels=8),
    "RelaxedEGNN": dict(channels=8),
    "RelaxedNequIP": dict(channels=4, l_max=2),
    "So3krates": dict(channels=8, l_max=2),
    "Transformer": dict(channels=8),
}


def some(seed: int, n: int, *, spread: float = 3.0, **given) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    return Graph.single(
        spread * torch.rand(n, 3, dtype=torch.float64, generator=generator),
        [[1, 6, 8][k % 3] for k in range(n)],
        **given,
    )


CELL = torch.tensor([[3.1, 0, 0], [0.4, 3.3, 0], [0.2, 0.1, 2.9]])
CASES = {
    "molecules": [some(0, 6), some(1, 3)],
    "cells": [some(2, 4, cell=CELL, pbc=True), some(3, 1, cell=CELL, pbc=True)],
    "mixed": [some(4, 3, cell=CELL, pbc=[True, True, False]), some(5, 5), some(6, 2, cell=CELL, pbc=True)],
    "one": [some(7, 1)],
    "no edges": [some(8, 3, spread=90.0), some(9, 1)],
    "lonely nodes": [some(10, 5), some(11, 4, spread=12.0)],
}


def outputs(model, graph):
    """Values, and gradients of the parameters for fixed random slopes of all of them."""
    out = dict(model(graph, create_graph=True).items())
    generator = torch.Generator().manual_seed(3)
    slopes = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in out.items()}
    total = sum((torch.where(torch.isfinite(v), v, 0.0) * slopes[n]).sum() for n, v in out.items())
    return {n: v.detach() for n, v in out.items()}, torch.autograd.grad(
        total, list(model.parameters()), allow_unused=True, materialize_grads=True
    )


def assert_regular_is_the_same(model, graph, **filling):
    model.backbone.full_edges = 1.0  # so that the graph stays as it is
    wanted, slopes = outputs(model, graph)
    found, others = outputs(model, regular(graph, **filling))
    for name, value in wanted.items():
        size = float(value.nan_to_num().abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12 * max(size, 1.0), equal_nan=True)
    largest = max(float(s.abs().max()) for s in slopes)
    for a, b in zip(slopes, others, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12 * max(largest, 1.0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OPTIONS)
def test_regular_graphs_are_the_same_to_every_backbone(name, case):
    torch.manual_seed(0)
    model = Model(
        BACKBONES[name](elements=ALPHABET, cutoff=4.0, layers=2, **OPTIONS[name]),
        ["energy", "forces", "stress"],
    ).double()
    graph = connect(collate(CASES[case]), 4.0)
    assert_regular_is_the_same(model, graph)


@pytest.mark.parametrize("name", OPTIONS)
def test_regular_graphs_with_all_that_may_be_given(name):
    """Charge, spin, features, vectors, kinds of bonds; and without a cutoff, for those that have none."""
    torch.manual_seed(0)
    options = OPTIONS[name] | dict(
        inputs=Inputs(charge=True, spin=True, node_features=2, edge_features=1, node_vectors=1)
    )
    model = Model(
        BACKBONES[name](elements=ALPHABET, cutoff=4.0, layers=2, **options), ["energy", "forces"]
    ).double()
    bonds = dict(pair_index=[[0, 1], [1, 0]], pair_attr=[[2.0], [2.0]])
    graphs = [
        some(k, n, spread=2.0, charge=k, spin=1, x=torch.rand(n, 2), vec=torch.randn(n, 1, 3), **bonds)
        for k, n in ((0, 4), (1, 6))
    ]
    assert_regular_is_the_same(model, connect(collate(graphs), 4.0))
    if name in ("EGNN", "PaiNN"):
        plane = Model(
            BACKBONES[name](elements=[0], cutoff=None, layers=2, **OPTIONS[name]), ["energy", "forces"]
        ).double()
        assert_regular_is_the_same(plane, connect(Graph.single(torch.rand(5, 2)), None))


def test_regular_graphs_with_velocities():
    torch.manual_seed(0)
    model = Model(
        EGNN(elements=[0], cutoff=None, channels=8, layers=2, inputs=Inputs(velocity=True)),
        [Quantity(name="moved", per="node", rank=1, point=True)],
    ).double()
    graphs = [Graph.single(torch.randn(n, 3), vel=torch.randn(n, 3)) for n in (3, 5)]
    assert_regular_is_the_same(model, connect(collate(graphs), None))


@pytest.mark.parametrize("name", OPTIONS)
def test_regular_clouds(name):
    torch.manual_seed(0)
    options = OPTIONS[name] | (dict(cutoff=None) if name in ("EGNN", "PaiNN") else dict(cutoff=9.0))
    model = Model(
        BACKBONES[name](elements=[0], layers=2, k=3, **options), [Quantity(name="kind", classes=["a", "b"])]
    ).double()
    graph = connect(
        collate([Graph.single(torch.randn(n, 3, dtype=torch.float64)) for n in (7, 9, 2)]),
        options["cutoff"],
        3,
    )
    assert regular(graph).reverse is None
    assert_regular_is_the_same(model, graph)


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_along_each_edge(case):
    """An involution that swaps the ends and turns the step; what is real is what was there, and the rest leads from a node to itself."""
    graph = connect(collate(CASES[case]), 4.0)
    full = regular(graph, nodes=2, degree=9)
    assert (
        full.num_nodes == graph.num_nodes + 2
        and full.num_graphs == graph.num_graphs + 2
        and full.real.shape[1] >= 9
    )
    real, back = full.real.flatten(), full.reverse.flatten()
    assert torch.equal(back[back], torch.arange(len(back)))
    assert torch.equal(full.edge_index[:, back], full.edge_index.flip(0)) and torch.equal(real[back], real)
    assert torch.equal(full.edge_index[:, real], graph.edge_index)
    assert bool((back[real] != torch.arange(len(back))[real]).all()) and torch.equal(
        back[~real], torch.arange(len(back))[~real]
    )
    assert bool((full.edge_index[0] == full.edge_index[1])[~real].all())
    if graph.shift is not None:
        assert torch.equal(full.shift[back], -full.shift) and torch.equal(full.shift[real], graph.shift)
    torch.testing.assert_close(full.edge_vectors()[real], graph.edge_vectors(), rtol=0, atol=1e-13)
    if bool((~real).any()):
        assert float(full.edge_vectors()[~real].norm(dim=1).min()) > 1000


def test_ways_back_that_are_missing_and_edges_in_another_order():
    graph = connect(some(0, 6), 2.0)
    assert regular(graph).reverse is not None
    assert regular(graph.replace(edge_index=graph.edge_index[:, 1:])).reverse is None
    assert (
        regular(
            graph.replace(edge_index=torch.cat([graph.edge_index[:, :1], graph.edge_index], dim=1))
        ).reverse
        is None
    )  # one twice
    torch.manual_seed(0)
    model = Model(PaiNN(elements=ALPHABET, cutoff=4.0, channels=8, layers=2), ["energy", "forces"]).double()
    order = torch.randperm(graph.edge_index.shape[1])
    shuffled = graph.replace(edge_index=graph.edge_index[:, order])
    assert_regular_is_the_same(model, shuffled.replace(cutoff=4.0))
    with pytest.raises(DataError, match="no edges yet"):
        regular(some(0, 3))


def test_empty_graphs_can_be_added():
    full = regular(connect(some(0, 4), 3.0), nodes=1, graphs=3)
    assert full.num_graphs == 5 and full.counts.tolist() == [4, 1, 0, 0, 0]


def test_flat_cells_are_refused_before_their_images_are_searched():
    """Three lattice vectors that lie almost in one plane: few neighbors, but 10^9 images."""
    cell = [[1.0, 1.0, -0.0055], [3.727, 0.028, 0.0022], [0.028, 3.74, -0.0241]]
    flat = Graph.single([[0.0, 0, 0]], ["B"], cell=cell, pbc=True)
    with pytest.raises(DataError, match=r"a cell 0.\d+ Å high, .* shorter ones: ase.build.niggli_reduce"):
        connect(flat, 0.3)
    skewed = Graph.single([[0.0, 0, 0]], ["B"], cell=[[3.0, 0, 0], [60.0, 3.0, 0], [0, 60.0, 3.0]], pbc=True)
    same = Graph.single([[0.0, 0, 0]], ["B"], cell=np.eye(3) * 3, pbc=True)
    assert connect(skewed, 3.5).edge_index.shape == connect(same, 3.5).edge_index.shape


@pytest.mark.parametrize("name", ("SevenNet", "MACE", "GauntACE"))
def test_full_graphs_are_regular_inside_a_model(name, monkeypatch):
    """Same outputs and gradients as of the graph as it is, for crystals in which few edges are padding."""
    torch.manual_seed(0)
    model = Model(
        BACKBONES[name](elements=ALPHABET, cutoff=4.0, layers=2, **OPTIONS[name]),
        ["energy", "forces", "stress"],
    ).double()
    sites = torch.cartesian_prod(*[torch.arange(2.0)] * 3) * 2.1
    crystals = [
        Graph.single(a * (sites + 0.05 * torch.randn(8, 3)), [6] * 8, cell=4.2 * a * torch.eye(3), pbc=True)
        for a in (1.0, 1.1)
    ]
    graph = connect(collate(crystals), 4.0)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].real))
    found, others = outputs(model, graph)
    monkeypatch.setattr(type(model.backbone), "full_edges", 1.0)
    wanted, slopes = outputs(model, graph)
    assert seen[0] is not None and not bool(seen[0].all()) and seen[1] is None
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12 * max(float(value.abs().max()), 1.0))
    largest = max(float(s.abs().max()) for s in slopes)
    for a, b in zip(slopes, others, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-12 * max(largest, 1.0))


def test_graphs_that_stay_as_they_are():
    chain = Graph.single([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0], [3.0, 0, 0]], [6] * 4)
    graph = connect(chain, 1.5)  # 6 edges where a regular graph has 8
    assert regular_if_full(graph, 0.75).real.sum() == 6
    assert regular_if_full(graph, 0.76) is graph
    assert regular_if_full(graph, 1.0) is graph
    full = connect(chain, 4.0)
    assert regular_if_full(full, 1.0) is full
    moving = full.replace(pos=full.pos.clone().requires_grad_())
    assert regular_if_full(moving, 0.5) is moving
    nearest = connect(chain, 4.0, k=3)
    assert regular_if_full(nearest, 0.5) is nearest
    again = regular(full)
    assert regular_if_full(again, 0.5) is again
    alone = connect(Graph.single([[0.0, 0, 0]], [6]), 4.0)
    assert regular_if_full(alone, 0.5) is alone


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("name", ("SevenNet", "MACE"))
def test_transforms_of_functions(name):
    """torch.func differentiates a full graph forwards: the slope is that of finite differences."""
    torch.manual_seed(0)
    model = Model(BACKBONES[name](elements=[6], cutoff=4.0, layers=2, **OPTIONS[name]), ["energy"]).double()
    graph = connect(Graph.single(torch.randn(4, 3), [6] * 4), 4.0)
    way = torch.randn_like(graph.pos)

    def energy(pos):
        return model.predict(graph.replace(pos=pos), True)["energy"].sum()

    slope = torch.func.jvp(energy, (graph.pos,), (way,))[1]
    h = 1e-5
    expected = (energy(graph.pos + h * way) - energy(graph.pos - h * way)) / (2 * h)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)

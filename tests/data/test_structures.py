"""Joined tables against the graphs they were made of."""

import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from molequi import Dataset, Graph
from molequi.data.digests import fingerprint_number
from molequi.data.fingerprints import fingerprint_numbers, repeated
from molequi.data.joined import joined
from molequi.data.structures import Structures
from molequi.graph import collate
from molequi.neighbors import connect


def same(a, b):
    """Whether two graphs have the same values, bit for bit."""
    for attribute in fields(Graph):
        x, y = getattr(a, attribute.name), getattr(b, attribute.name)
        if isinstance(x, torch.Tensor):
            assert isinstance(y, torch.Tensor), attribute.name
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        elif isinstance(x, dict):
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        else:
            assert x == y, (attribute.name, x, y)


def graphs(*, periodic=(), pairs=False, connected=False, seed=0):
    """Random structures of 1 to 6 atoms; those with these numbers have a cell."""
    random = np.random.default_rng(seed)
    out = []
    for k in range(7):
        n = int(random.integers(1, 7))
        more = {}
        if k in periodic:
            more = {"cell": np.eye(3) * 4 + random.normal(size=(3, 3)) * 0.1, "pbc": [True, k % 2 == 0, True]}
        if pairs and n > 1:
            more |= {"pair_index": [[0, 1], [1, 0]], "pair_attr": random.normal(size=(1, 2)).repeat(2, 0)}
        elif pairs:
            more |= {"pair_index": np.zeros((2, 0), int), "pair_attr": np.zeros((0, 2))}
        graph = Graph.single(
            random.normal(size=(n, 3)) * 2,
            random.integers(1, 9, n).tolist(),
            vel=random.normal(size=(n, 3)),
            charge=float(k),
            targets={
                "energy": torch.tensor(random.normal(size=1)),
                "forces": torch.tensor(random.normal(size=(n, 3))),
            },
            **more,
        )
        out.append(connect(graph, 9.0) if connected else graph)
    return out


KINDS = {
    "molecules": {},
    "with edges": {"connected": True},
    "some periodic": {"periodic": (1, 2, 5), "connected": True},
    "all periodic": {"periodic": range(7), "connected": True},
    "only the first periodic": {"periodic": (1, 2), "connected": True},
    "only the last periodic": {"periodic": (5,), "connected": True},
    "pairs": {"pairs": True, "connected": True},
}


def as_tables(given):
    return Structures.of(given, ["forces"])


def of_two(given):
    return joined(as_tables(given[:3]), as_tables(given[3:]))


def of_parts(given):
    """Parts of other tables, three of them, which have further structures."""
    first = as_tables([given[6], given[0], given[1]]).select([1, 2])
    second = as_tables([given[4], given[3], given[2], given[0]]).select([2, 1, 0])
    return joined(joined(first, second), as_tables(given[5:]))


def of_another_process(given):
    return pickle.loads(pickle.dumps(of_parts(given)))


@pytest.mark.parametrize("made", [as_tables, of_two, of_parts, of_another_process])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_tables_is_that_of_the_graphs(kind, made):
    """`collate` is the second way to the same batch."""
    given = graphs(**KINDS[kind])
    tables = made(given)
    assert len(tables) == 7
    for one, again in zip(given, tables):
        same(one, again)
    for chosen in ([3], [0, 1], [0, 3, 4], [6, 2, 2, 5], list(range(7))):  # 0, 3, 4: none is periodic
        same(collate([given[k] for k in chosen]), tables.batch(chosen))
    part = tables.select([5, -1, 2, 0])
    wanted = [given[k] for k in (5, 6, 2, 0)]
    for one, again in zip(wanted, part):
        same(one, again)
    same(collate(wanted[1:]), part.batch([1, 2, 3]))
    same(collate(wanted[1:]), part[1:].batch([0, 1, 2]))
    assert part.counts.tolist() == [g.num_nodes for g in wanted]
    assert torch.equal(part.pos, torch.cat([g.pos for g in wanted]))
    assert torch.equal(part.target("forces"), torch.cat([g.targets["forces"] for g in wanted]))
    assert part.owners().tolist() == [k for k, g in enumerate(wanted) for _ in range(g.num_nodes)]
    if wanted[0].edge_index is not None:
        assert part.edge_counts.tolist() == [g.edge_index.shape[1] for g in wanted]
    assert part.has("cell").tolist() == [g.cell is not None for g in wanted]
    assert fingerprint_numbers(part).tolist() == [fingerprint_number(g) for g in wanted]
    for one, again in zip(given, tables.with_targets(["energy"]).with_edges(None)):
        same(one.without("edge").replace(targets={"energy": one.targets["energy"]}), again)


def test_far_images_keep_their_lattice_steps():
    """A step of 200 cells does not fit into one byte."""
    thin = Graph.single([[0.0, 0, 0], [0, 0, 400.1]], ["H", "H"], cell=np.diag([9.0, 9, 2.0]), pbc=True)
    connected = connect(thin, 3.0)
    assert int(connected.shift.abs().max()) > 127  # what makes this test one
    same(connected, Structures.of([connected])[0])


def test_index_types_of_both_are_kept():
    """Atom 40 000 does not fit into the type of the small structures, nor a step of 200 cells into that of near ones."""
    random = np.random.default_rng(0)
    large = Graph.single(random.uniform(0, 400, (40_000, 3)), [1] * 40_000, cell=np.eye(3) * 500, pbc=True)
    small = Graph.single(np.eye(3), [1, 6, 8], cell=np.eye(3) * 30, pbc=True)
    thin = Graph.single([[0.0, 0, 0], [0, 0, 400.1]], ["H", "H"], cell=np.diag([9.0, 9, 2.0]), pbc=True)
    large, small, thin = (connect(g, 3.0) for g in (large, small, thin))
    tables = joined(joined(Structures.of([small]), Structures.of([large])), Structures.of([thin]))
    for k, graph in enumerate((small, large, thin)):
        same(graph, tables[k])
    same(collate([large, small, thin]), tables.batch([1, 0, 2]))


def test_mixed_neighbor_lists_are_left_out():
    near, far = connect(graphs()[0], 1.0), connect(graphs()[1], 2.0)
    assert Structures.of([near, far], ["forces"])[0].edge_index is None
    assert Structures.of([near, graphs()[1]], ["forces"]).edges is None


def test_a_part_is_handed_to_another_process():
    part = Structures.of(graphs(connected=True), ["forces"]).select([4, 1])
    for one, again in zip(part, pickle.loads(pickle.dumps(part))):
        same(one, again)


def test_both_are_joined():
    data = Dataset(graphs())
    both = data[:3] + data[5:]
    for one, again in zip([*graphs()[:3], *graphs()[5:]], both):
        same(one, again)


def test_repeated_values():
    random = np.random.default_rng(1)
    numbers = random.integers(0, 30, 40)
    wanted = [k for k in range(40) if (numbers == numbers[k]).sum() > 1]
    assert repeated(numbers).tolist() == wanted
    assert repeated(np.array([1, 2, 3])).tolist() == []

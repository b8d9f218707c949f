"""The neighbor list with a skin gives the same edges as a search at every step, to any engine."""

import numpy as np
import pytest
import torch

import molequi as mq
from molequi.errors import DataError, ModelError
from molequi.interfaces import NeighborList

CUTOFF = 3.0
CELL = np.array([[3.4, 0, 0], [0.7, 3.6, 0], [0.3, -0.4, 3.8]])  # smaller than the cutoff


def cloud(n=30, size=6.0, seed=0):
    return np.random.default_rng(seed).uniform(0, size, (n, 3))


def walk(positions, steps=40, size=0.04, seed=1):
    """A random walk with steps much shorter than the skin."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        positions = positions + size * rng.standard_normal(positions.shape)
        yield positions


def edges(graph):
    shift = np.zeros((graph.edge_index.shape[1], 3)) if graph.shift is None else graph.shift.numpy()
    return [(*pair, *step) for pair, step in zip(graph.edge_index.T.tolist(), shift.tolist())]


@pytest.mark.parametrize("pbc", [False, True, [True, False, True]])
def test_edges_are_those_of_a_search_at_every_step(pbc):
    kept, stale, numbers = NeighborList(CUTOFF, 0.5), None, np.full(30, 6)
    cell = CELL * 1.5 if np.any(pbc) else None
    wrong = 0
    for positions in walk(cloud()):
        graph = kept(positions, numbers, cell=cell, pbc=pbc)
        fresh = mq.connect(mq.Graph.single(positions, numbers, cell=cell, pbc=pbc), CUTOFF)
        assert edges(graph) == edges(fresh) and len(edges(graph)) > 30
        assert torch.equal(graph.pos, fresh.pos) and graph.cutoff == fresh.cutoff == CUTOFF
        stale = fresh if stale is None else stale  # control: the edges of the first step are soon wrong
        wrong += edges(stale) != edges(fresh)
    assert 1 < kept.searches < 20 and wrong > 30


def test_a_skin_of_zero_searches_at_every_step_and_all_pairs_need_no_trimming():
    none, pairs = NeighborList(CUTOFF, 0.0), NeighborList(None)
    for positions in walk(cloud(), steps=5):
        none(positions)
        assert pairs(positions).edge_index.shape[1] == 30 * 29
    assert none.searches == 5


def test_what_else_starts_a_search():
    kept, positions, numbers = NeighborList(CUTOFF, 0.5), cloud(4, 3.0), np.array([1, 6, 8, 1])
    kept(positions, numbers, cell=CELL, pbc=True)
    kept(positions.copy(), numbers.copy(), cell=CELL.copy(), pbc=True)
    assert kept.searches == 1
    numbers[0] = 6  # in place
    assert kept(positions, numbers, cell=CELL, pbc=True).z.tolist() == [6, 6, 8, 1] and kept.searches == 2
    assert len(edges(kept(positions, numbers, cell=0.8 * CELL, pbc=True))) > len(
        edges(kept(positions, numbers, cell=CELL, pbc=True))
    )
    assert kept.searches == 4
    assert kept(positions, numbers).pbc is None and kept.searches == 5
    assert kept(positions[:3], numbers[:3]).num_nodes == 3 and kept.searches == 6
    kept.skin = 1.0
    kept(positions[:3], numbers[:3])
    assert kept.searches == 7


def test_without_trimming_the_edges_of_the_skin_stay():
    kept, positions = NeighborList(CUTOFF, 0.5), cloud()
    whole, near = kept(positions, trim=False), kept(positions)
    assert whole.cutoff == CUTOFF + 0.5 and len(edges(whole)) > len(edges(near))
    assert float(near.edge_vectors().norm(dim=1).max()) < CUTOFF


def test_other_fields_come_along_and_are_checked_without_a_search():
    kept, positions = NeighborList(CUTOFF, 0.5), cloud(5, 3.0)
    graph = kept(positions, np.ones(5, int), charge=1, spin=2, x=np.ones((5, 2)))
    assert graph.charge.tolist() == [1] and graph.spin.tolist() == [2] and graph.x.shape == (5, 2)
    new = kept(positions + 0.01, np.ones(5, int), charge=-1, spin=2, vel=torch.ones(5, 3))
    assert new.charge.tolist() == [-1] and new.x is None and kept.searches == 1
    assert torch.equal(new.vel, torch.ones(5, 3, dtype=torch.float64))
    assert torch.equal(new.edge_index, graph.edge_index) and torch.equal(
        new.pos, torch.tensor(positions + 0.01)
    )
    with pytest.raises(DataError, match="vel of shape"):
        kept(positions, np.ones(5, int), vel=np.ones((4, 3)))
    assert kept(positions, np.ones(5, int), charge=3).charge.tolist() == [3] and kept.searches == 1


def test_values_of_pairs_stand_on_their_edges():
    kept, positions = NeighborList(CUTOFF, 0.5), np.array([[0.0, 0, 0], [1, 0, 0], [0, 2.9, 0]])
    bond = dict(pair_index=[[0, 1], [1, 0]], pair_attr=[[7.0], [7.0]])
    graph = kept(positions, **bond)
    assert graph.edge_attr.flatten().tolist() == [
        7.0 if {i, j} == {0, 1} else 0.0 for i, j in graph.edge_index.T.tolist()
    ]
    other = kept(positions, **{**bond, "pair_attr": [[8.0], [8.0]]})
    assert other.edge_attr.max() == 8 and kept.searches == 1
    positions[1, 0] = 3.2  # still in the list, and no edge
    with pytest.raises(DataError, match="which is no edge"):
        kept(positions, **bond)


def test_an_engine_of_tensors_gets_the_forces_of_the_ase_calculator():
    """Velocity Verlet in PyTorch, without ASE."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "O"], cutoff=CUTOFF, channels=8, layers=1)).double().eval()
    numbers = torch.tensor([8, 1, 1])
    pos = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]], dtype=torch.float64)
    vel, kept = torch.full((3, 3), 0.3, dtype=torch.float64), NeighborList(model.cutoff)
    for _ in range(30):
        pos = pos + 0.02 * vel
        forces = model(kept(pos, numbers))["forces"]
        vel = vel + 0.02 * forces
    from ase import Atoms

    atoms = Atoms(numbers.numpy(), pos.numpy(), calculator=mq.Calculator(model, skin=0.0))
    assert np.allclose(forces.numpy(), atoms.get_forces(), rtol=0, atol=1e-12) and forces.abs().max() > 1e-3
    assert kept.searches < 15


def test_gradients_reach_the_positions_of_the_caller():
    pos = torch.tensor(cloud(), requires_grad=True)
    graph = NeighborList(CUTOFF)(pos)
    graph.edge_vectors().square().sum().backward()
    assert pos.grad.abs().max() > 0


@pytest.mark.parametrize(
    "cutoff, skin, wanted",
    [
        (-1, 0.5, "cutoff=-1"),
        (True, 0.5, "cutoff=True"),
        (3.0, float("nan"), "skin=nan"),
        (3.0, "x", "skin='x'"),
    ],
)
def test_what_is_no_distance_is_refused(cutoff, skin, wanted):
    with pytest.raises(ModelError, match=wanted):
        NeighborList(cutoff, skin)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_position_that_is_not_finite_is_refused_in_a_kept_list(bad):
    kept, positions = NeighborList(CUTOFF), cloud(4)
    kept(positions)
    positions[2, 1] = bad
    with pytest.raises(DataError, match="position of atom 2"):
        kept(positions)


def strained(steps=40, size=0.002, seed=2):
    """A random walk of strains."""
    rng, strain = np.random.default_rng(seed), np.eye(3)
    for _ in range(steps):
        step = size * rng.standard_normal((3, 3))
        strain = strain @ (np.eye(3) + (step + step.T) / 2)
        yield strain


def test_a_list_follows_a_cell_that_strains():
    kept, numbers, wrong, stale = NeighborList(CUTOFF, 0.5), np.full(30, 6), 0, None
    for positions, strain in zip(walk(cloud(), size=0.01), strained()):
        positions, cell = positions @ strain, 1.5 * CELL @ strain
        charge = int(100 * positions[0, 0])  # another field, which also changes
        graph = kept(positions, numbers, cell=cell, pbc=True, charge=charge)
        fresh = mq.connect(mq.Graph.single(positions, numbers, cell=cell, pbc=True, charge=charge), CUTOFF)
        assert edges(graph) == edges(fresh) and torch.equal(graph.charge, fresh.charge)
        assert torch.equal(graph.cell, fresh.cell) and torch.equal(graph.pos, fresh.pos)
        assert torch.allclose(graph.edge_vectors(), fresh.edge_vectors(), atol=1e-12, rtol=0)
        stale = fresh if stale is None else stale
        wrong += edges(stale) != edges(fresh)
    assert 1 < kept.searches < 20 and wrong > 30


def test_without_a_skin_a_cell_that_grows_leaves_no_edge_beyond_the_cutoff():
    kept, positions, numbers = NeighborList(CUTOFF, 0.0), cloud(4, 3.0), np.full(4, 6)
    fewer = []
    for factor in (1.0, 1.2, 1.2):
        graph = kept(factor * positions, numbers, cell=factor * CELL, pbc=True, trim=False)
        assert float(graph.edge_vectors().norm(dim=1).max()) < CUTOFF
        fewer.append(len(edges(graph)))
    assert fewer[0] > fewer[1] == fewer[2] > 0 and kept.searches == 2


def test_a_cell_that_is_changed_in_place_starts_a_search():
    kept, positions, cell = NeighborList(CUTOFF, 0.5), cloud(4, 3.0), CELL.copy()
    before = kept(positions, np.full(4, 6), cell=cell, pbc=True)
    cell *= 0.8
    assert len(edges(kept(positions, np.full(4, 6), cell=cell, pbc=True))) > len(edges(before))
    assert kept.searches == 2


def test_cells_that_a_list_cannot_follow():
    kept, positions, numbers = NeighborList(CUTOFF, 0.5), cloud(4, 3.0), np.full(4, 6)
    slab = dict(pbc=[True, True, False])
    kept(positions, numbers, cell=CELL, **slab)
    kept(positions, numbers, cell=1.001 * CELL, **slab)
    assert kept.searches == 2
    kept(positions, numbers, cell=CELL, pbc=True)
    kept(1.2 * positions, numbers, cell=1.2 * CELL, pbc=True)  # nothing came closer
    kept(1.2 * positions, numbers, cell=1.02 * CELL, pbc=True)  # the cell alone: atoms have moved beyond it
    assert kept.searches == 4
    for wrong in (np.full((3, 3), np.nan), np.ones((2, 2)), np.zeros((3, 3))):
        with pytest.raises(DataError):
            kept(positions, numbers, cell=wrong, pbc=True)

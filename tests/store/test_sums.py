"""Stores that are added: the same as in memory, and nothing is copied."""

import pickle

import pytest
import torch

import molequi as mq
from molequi.data.batches import Loader
from molequi.errors import DataError, DataWarning

from .test_store import equal


@pytest.fixture(scope="module")
def memory():
    return mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":60")


@pytest.fixture(scope="module")
def folders(memory, tmp_path_factory):
    """20 and 40 structures."""
    folder = tmp_path_factory.mktemp("stores")
    for name, part in (("a", memory[:20]), ("b", memory[20:])):
        mq.prepare(part, folder / name, cutoff=4.0, progress=False)
    return folder


@pytest.fixture
def both(folders):
    return mq.read_store(folders / "a") + mq.read_store(folders / "b")


def as_in_memory(wanted, found):
    """Without what says how often a key occurs and where a label was found, which are those of the stores."""
    assert len(wanted) == len(found) and list(wanted.origins) == list(found.origins)
    for a, b in zip(wanted, found):
        for name in ("pos", "z", "edge_index"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert all(torch.equal(a.targets[name], b.targets[name]) for name in a.targets)


def test_a_sum_is_that_in_memory(memory, both):
    wanted = memory.connected(4.0)
    as_in_memory(wanted, both)
    assert both.connected(4.0) is both  # the neighbor lists are not searched again
    assert both.quantities == wanted.quantities and both.elements == wanted.elements
    assert {k: list(v) for k, v in both.info.items()} == {k: list(v) for k, v in wanted.info.items()}
    assert both.statistics(4.0) == wanted.statistics(4.0)
    assert torch.equal(both.values("forces"), wanted.values("forces"))
    chosen = [59, 3, 21, 19, 20]
    as_in_memory(wanted[chosen], both[chosen])
    as_in_memory(wanted[chosen][1:3], both[chosen][1:3])
    a, b = wanted.split([30, 20], seed=3), both.split([30, 20], seed=3)
    for one, other in zip(a, b):
        as_in_memory(one, other)
    assert "60 structures of 9 atoms" in both.summary()


def test_a_sum_copies_nothing(folders):
    first, second = (mq.read_store(folders / name) for name in "ab")
    both = first + second
    tables = both.graphs.columns.fields["pos"].tables
    assert [t.data_ptr() for t in tables] == [
        one.graphs.columns.fields["pos"].data_ptr() for one in (first, second)
    ]
    sent = pickle.dumps(Loader(both[10:50], ["energy"]).graphs)
    assert len(sent) < 40 * 8 * 2 + 4000  # two numbers for each structure, and paths
    again = pickle.loads(sent)
    one, other = again.batch([30, 2]), both[10:50].graphs.with_targets(["energy"]).batch([30, 2])
    assert torch.equal(one.pos, other.pos) and list(one.targets) == ["energy"]
    assert pickle.loads(pickle.dumps(both.graphs)).on_disk


def test_stores_and_structures_in_memory(memory, folders):
    stored = mq.read_store(folders / "a")
    as_in_memory(memory.connected(4.0), stored + memory[20:].connected(4.0))
    as_in_memory(memory[[*range(20, 25), *range(20)]].connected(4.0), memory[20:25].connected(4.0) + stored)
    three = stored[:5] + memory[5:7].connected(4.0) + stored[7:]
    as_in_memory(memory[:20].connected(4.0), three)
    assert [sorted(mq.data.duplicates([three, stored]))[k][0] for k in (0, 6)] == [(0, 0), (0, 6)]


def test_neighbor_lists_of_one_alone_are_said_to_be_lost(memory, folders):
    stored = mq.read_store(folders / "a")
    with pytest.warns(DataWarning, match=r"frame 0 and .*frame 20: neighbor lists of both.*same --cutoff"):
        both = stored + memory[20:]
    as_in_memory(memory.connected(4.0), both.connected(4.0))
    with pytest.warns(DataWarning, match="neighbor lists of both"):
        stored + memory[20:].connected(3.0)


def test_neighbor_lists_of_two_cutoffs_are_not_mixed(memory, folders, tmp_path):
    other = mq.prepare(memory[20:], tmp_path / "s", cutoff=2.0, progress=False)
    with pytest.warns(DataWarning, match="are not of one cutoff"):
        both = mq.read_store(folders / "a") + other
    as_in_memory(memory.connected(4.0), both.connected(4.0))


def test_sums_that_do_not_fit(memory, folders):
    stored = mq.read_store(folders / "a")
    with pytest.raises(DataError, match="cannot be joined"):
        stored + memory.with_quantities(["energy"])
    moving = mq.Dataset([g.replace(vel=torch.zeros_like(g.pos)) for g in memory[:2].connected(4.0)])
    with pytest.raises(DataError, match="one has 'vel' and the other has not"):
        stored + moving.with_quantities(list(stored.quantities))


def test_digests_of_sums(memory, folders, both):
    a, b = (mq.read_store(folders / name) for name in "ab")
    digests = [(a + b).digest, (b + a).digest, (a[:5] + b).digest, (a + b)[:5].digest, a.digest]
    assert len(set(digests)) == 5 and digests[0] == both.digest
    connected = memory.connected(4.0)
    others = [mq.Dataset(list(connected[k : k + 5]), quantities=memory.quantities) for k in (20, 25)]
    assert (a + others[0]).digest != (a + others[1]).digest


def test_a_training_on_a_sum_is_that_in_memory(memory, both):
    def trained(data):
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0), ["energy"])
        result = mq.fit(model, data[10:30], data[:8], epochs=1, batch_size=4, logging={"progress": False})
        return result.history[0]["train_loss"], model.state_dict()

    (first, weights), (second, again) = trained(memory), trained(both)
    assert first == second and all(torch.equal(weights[name], again[name]) for name in weights)


def test_a_sum_is_stored(both, tmp_path):
    stored = mq.prepare(both, tmp_path / "s", progress=False)
    as_in_memory(both, stored)
    equal(stored, mq.prepare(both[:], tmp_path / "t", progress=False))

"""A Dataset: parts, splits, neighbours on disk."""

import math
from unittest import mock

import ase
import ase.build
import numpy as np
import pytest
import torch

from molequi.data import Dataset, DataWarning, duplicates
from molequi.errors import DataError
from molequi.graph import Graph
from molequi.neighbors import connect
from molequi.quantities import Quantity
from molequi.readers import from_atoms


@pytest.fixture
def data():
    """Forty waters, each turned and moved a little differently; every fourth belongs to one of ten trajectories."""
    random, frames = np.random.default_rng(0), []
    for k in range(40):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.05, rng=random)
        atoms.info = {"energy": -76.0 + random.normal(), "trajectory": f"run {k // 4}", "step": k}
        frames.append(atoms)
    return from_atoms(frames)


def test_parts(data):
    assert len(data[:5]) == 5 and torch.equal(data[3].pos, data.graphs[3].pos)
    assert torch.equal(data[-1].pos, data.graphs[39].pos)
    assert data[[4, 1]].info["step"] == (4, 1)
    assert len(data[np.arange(40) % 2 == 0]) == 20
    assert (data[:5] + data[5:]).digest == data.digest != data[::-1].digest
    assert data.elements == (1, 8)
    for bad in ([40], [0.5], np.ones(3, bool), "abc"):
        with pytest.raises(DataError, match="outside of|wanted an integer|mask of shape"):
            data[bad]
    with pytest.raises(DataError, match="without structures"):
        data[:0]


def test_what_does_not_fit_together_is_refused(data):
    other = from_atoms([ase.Atoms("H")])
    with pytest.raises(DataError, match="cannot be joined"):
        data + other
    charged = data[0].replace(charge=torch.ones(1, dtype=torch.float64))
    with pytest.raises(DataError, match="one has 'charge' and the other has not"):
        Dataset([data[0], charged])
    with pytest.raises(DataError, match="'enrgy': not a known quantity; did you mean 'energy'"):
        Dataset([Graph.single([[0.0, 0, 0]], [1], targets={"enrgy": torch.zeros(1)})])
    with pytest.raises(DataError, match="has 1 entries for 40"):
        Dataset(data.graphs, info={"step": [1]})
    with pytest.raises(DataError, match="one has|has the targets"):
        Dataset([data[0], data[1].replace(targets={})])
    with pytest.raises(DataError, match="no 'forces' in these data"):
        data.values("forces")


def test_own_quantities_and_dimensions():
    shape = Quantity(name="area", unit="")
    flat = Graph.single([[0.0, 0.0], [1.0, 0.0]], targets={"area": torch.ones(1)})
    assert Dataset([flat], quantities={"area": shape}).quantities == {"area": shape}


@pytest.mark.parametrize(
    "sizes, expected",
    [([30, 10], [30, 10]), ([5, 5], [5, 5]), ([0.5, 0.5], [20, 20]), ([0.9, 0.05, 0.05], [36, 2, 2])],
)
def test_split_sizes(data, sizes, expected):
    parts = data.split(sizes, seed=3)
    assert [len(p) for p in parts] == expected
    steps = [s for p in parts for s in p.info["step"]]
    assert len(set(steps)) == len(steps)
    assert [p.info["step"] for p in data.split(sizes, seed=3)] == [p.info["step"] for p in parts]
    assert [p.info["step"] for p in data.split(sizes, seed=4)] != [p.info["step"] for p in parts]


def test_split_by_name_and_index(data):
    parts = data.split({"train": 30, "valid": 10})
    assert list(parts) == ["train", "valid"] and parts["train"].info["step"] == tuple(
        sorted(parts["train"].info["step"])
    )
    given = data.split({"train": [3, 1], "test": range(10, 12)})
    assert given["train"].info["step"] == (3, 1) and given["test"].info["step"] == (10, 11)


@pytest.mark.parametrize("sizes", [[20, 20], [0.8, 0.1, 0.1], [36, 4], {"train": 10, "valid": 4}])
def test_split_by_group(data, sizes):
    parts = data.split(sizes, by="trajectory")
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    groups = [set(p.info["trajectory"]) for p in parts]
    assert all(groups) and len(set.union(*groups)) == sum(map(len, groups))
    assert all(len(p) % 4 == 0 for p in parts)
    wanted = list(sizes.values()) if isinstance(sizes, dict) else sizes
    assert all(abs(len(p) - (w if isinstance(w, int) else w * 40)) <= 3 for p, w in zip(parts, wanted))


@pytest.mark.parametrize(
    "sizes, options, sentence",
    [
        ([30, 11], {}, "wants 41 structures; there are 40"),
        ({"train": 40, "valid": 0}, {}, "valid has size 0"),
        ([0.9, 0.2], {}, "add up to 1.1"),
        ([0.99, 0.001], {}, "which is none"),
        ([0.5, 10], {}, "cannot be mixed"),
        ([[1], 10], {}, "cannot be mixed"),
        ([[1, 2], [2]], {}, "index 2 is in part 0 and again in part 1"),
        ([[1], [40]], {}, "index 40; wanted integers from 0 to 39"),
        ([[1], []], {}, "part 1 is empty"),
        ([True], {}, "size True"),
        ([], {}, "no parts"),
        ([20, 20], {"by": "trajektory"}, "did you mean 'trajectory'"),
        ([1] * 11, {"by": "trajectory"}, "11 parts by groups of which there are 10"),
    ],
)
def test_split_refuses(data, sizes, options, sentence):
    with pytest.raises(DataError, match=sentence):
        data.split(sizes, **options)


def test_duplicates_are_by_geometry(data):
    copy = data[0].replace(targets={"energy": torch.zeros(1, dtype=torch.float64)}, pos=data[0].pos + 1e-9)
    assert duplicates([data[:2], Dataset([data[5], copy])]) == [((0, 0), (1, 1))]
    moved = Dataset([data[0].replace(pos=data[0].pos + 1e-3)])
    assert duplicates([data, moved]) == []


@pytest.mark.parametrize("cutoff", [1.2, None])
def test_neighbours_come_back_from_disk(data, tmp_path, cutoff):
    first = data.connected(cutoff, tmp_path)
    (stored,) = tmp_path.glob("*.safetensors")
    before = stored.stat().st_mtime_ns
    again = data.connected(cutoff, tmp_path)
    assert stored.stat().st_mtime_ns == before
    for graph, a, b in zip(data, first, again):
        want = connect(graph, cutoff)
        for got in (a, b):
            assert (
                torch.equal(got.edge_index, want.edge_index)
                and got.shift is None
                and got.cutoff == want.cutoff
            )
            assert torch.equal(got.targets["energy"], graph.targets["energy"])
    assert first.connected(cutoff) is first
    data.connected(0.5, tmp_path)
    data[:20].connected(cutoff, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not list(tmp_path.glob("*.tmp"))


def test_periodic_neighbours_come_back_from_disk(tmp_path):
    data = from_atoms(
        [
            ase.build.bulk("Cu"),
            ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]),
            ase.build.fcc111("Cu", (1, 1, 2), vacuum=5),
        ]
    )
    first, again = (data.connected(4.0, tmp_path) for _ in range(2))
    for a, b in zip(first, again):
        assert torch.equal(a.edge_index, b.edge_index)
        assert (a.shift is None) == (b.shift is None) and (a.shift is None or torch.equal(a.shift, b.shift))
        assert torch.equal(a.edge_vectors(), b.edge_vectors())
    assert [g.shift is None for g in again] == [False, True, False]


def test_damaged_cache_is_never_used(data, tmp_path):
    want = data.connected(1.2, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for position in [8, len(whole) - 1, *random.integers(0, len(whole), 20).tolist(), None]:
        damaged = bytearray(whole)
        if position is None:
            damaged = damaged[:-10]
        else:
            damaged[position] ^= 0x10
        path.write_bytes(damaged)
        with pytest.warns(DataWarning, match="damaged neighbor cache"):
            got = data.connected(1.2, tmp_path)
        assert all(torch.equal(a.edge_index, b.edge_index) for a, b in zip(want, got))
        data.connected(1.2, tmp_path)  # made again: no warning this time


def test_cutoff_and_cache_folder_are_checked(data, tmp_path):
    with pytest.raises(DataError, match="cutoff -1"):
        data.connected(-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache folder"):
        data.connected(1.2, tmp_path / "file")
    with mock.patch("os.replace", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(DataError, match=r"cannot be written \(No space left"):
            data.connected(1.2, tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


def test_census(data):
    text = data.summary()
    assert (
        "40 structures of 3 atoms (H 80, O 40), none periodic" in text
        and "energy  40/40" in text
        and "step (40)" in text
    )
    assert text in repr(data)


def test_classes_are_counted_and_checked():
    shape = Quantity(name="shape", classes=["rod", "ball"])

    def data(*labels):
        return Dataset(
            [
                Graph.single(
                    torch.zeros(1, 3), targets={"shape": torch.tensor([float(t)], dtype=torch.float64)}
                )
                for t in labels
            ],
            quantities={"shape": shape},
        )

    assert "rod 2, ball 1" in data(0, 1, 0, float("nan")).summary()
    for bad in (2, -1, 0.5):
        with pytest.raises(
            DataError, match=r"structure 1: the class of shape is .* from 0 \(rod\) to 1 \(ball\)"
        ):
            data(0, bad)


def test_the_census_of_clouds_speaks_of_points():
    cloud = Graph.single(torch.randn(4, 2), vec=torch.ones(4, 1, 2), x=torch.zeros(4, 3))
    text = Dataset([cloud, cloud]).summary()
    assert "2 clouds of 4 points in 2 dimensions" in text and "atoms" not in text and "vec" in text


def test_one_size_is_no_split(data):
    with pytest.raises(DataError, match=r"split\(0.8\): wanted the sizes of all parts, such as \[0.8, 0.2\]"):
        data.split(0.8)


def test_scaffolds_follow_from_smiles():
    """Toluene and phenol share benzene, cyclohexanol has another, and what has no ring has an empty one."""
    names = ["Cc1ccccc1", "Oc1ccccc1", "OC1CCCCC1", "CCO", "CCC"]
    graphs = [Graph.single(torch.full((1, 3), float(k))) for k in range(5)]
    data = Dataset(graphs, info={"smiles": names})
    for seed in range(6):
        parts = data.split([2, 1, 2], seed=seed, by="scaffold")
        found = [set(p.info["smiles"]) for p in parts]
        assert {"Cc1ccccc1", "Oc1ccccc1"} in found and {"CCO", "CCC"} in found and {"OC1CCCCC1"} in found
    with pytest.raises(DataError, match="structure 1: smiles is 'c1ccc', of which there is no scaffold"):
        Dataset(graphs[:2], info={"smiles": ["CC", "c1ccc"]}).split([1, 1], by="scaffold")


def _labelled(**targets):
    return Graph.single([[0, 0, 0], [0, 0, 0.74]], ["H", "H"], targets=targets)


def test_labels_of_an_own_reader_are_converted():
    as_given = [
        {"energy": -1.0, "forces": np.ones((2, 3), np.float32), "dipole": [1, 2, 3]},
        {
            "energy": torch.tensor([-1], dtype=torch.int64),
            "forces": torch.ones(2, 3),
            "dipole": torch.ones(1, 3),
        },
    ]
    data = Dataset([_labelled(**targets) for targets in as_given])
    assert data.values("energy").tolist() == [-1.0, -1.0] and data.values("forces").shape == (4, 3)
    assert data.values("dipole").tolist() == [[1, 2, 3], [1, 1, 1]]
    assert all(value.dtype == torch.float64 for g in data for value in g.targets.values())


@pytest.mark.parametrize(
    "targets, words",
    [
        (
            {"energy": [[1.0, 2.0, 3.0]]},
            r"structure 0: the label 'energy' has the shape \(1, 3\); wanted \(1,\)",
        ),
        ({"energy": [[1.0]]}, r"shape \(1, 1\); wanted \(1,\)"),
        ({"dipole": torch.ones(1, 3, 3)}, r"'dipole' has the shape \(1, 3, 3\); wanted \(1, 3\)"),
        ({"forces": torch.ones(3, 3)}, r"'forces' has the shape \(3, 3\); wanted \(2, 3\)"),
        ({"forces": torch.ones(6)}, r"'forces' has the shape \(6,\); wanted \(2, 3\)"),
        ({"energy": math.inf}, "'energy' is infinite; wanted numbers, NaN where unknown"),
        ({"energy": "low"}, r"'energy' is low \(str\); wanted numbers"),
        ({"energy": torch.ones(1, dtype=torch.complex64)}, "wanted numbers"),
    ],
)
def test_labels_of_another_shape_are_refused(targets, words):
    with pytest.raises(DataError, match=words):
        Dataset([_labelled(**targets)])


def test_what_is_no_structure_is_refused():
    graph = _labelled(energy=1.0)
    for given, words in (
        (graph, r"found Graph; wanted a list of Graphs"),
        (None, "found NoneType; wanted a list of Graphs"),
        ([graph, None], "structure 1 is NoneType; wanted a Graph"),
        ([graph.replace(charge=5)], r"charge is 5 \(int\); wanted a tensor of shape \(1\)"),
        (
            [graph.replace(pos=torch.zeros(5, 2))],
            r"z is a tensor of shape \(2,\) and torch.int64; wanted .* \(5\)",
        ),
        ([graph.replace(pos=[1, 2])], "pos is .*wanted a tensor of shape"),
    ):
        with pytest.raises(DataError, match=words):
            Dataset(given)
    with pytest.raises(DataError, match=r"quantities\['foo'\]: found .*wanted Quantity\('foo', …\)"):
        Dataset([graph], quantities={"foo": Quantity("bar")})
    with pytest.raises(DataError, match="quantities: found list"):
        Dataset([graph], quantities=[Quantity("bar")])


def test_keys_that_were_not_read_are_counted_in_each_part():
    """Each part says its own number where all structures have the key, and none where only some have it."""
    graphs = [Graph.single([[0.0, 0, 0], [0, 0, 0.7 + 0.01 * k]], ["H", "H"]) for k in range(10)]
    data = Dataset(graphs, unused={"shielding": 10, "note": 4})
    assert "not read: note (4), shielding (10)" in data.summary()
    train, valid = data.split([7, 3], seed=0)
    assert (
        "not read: note, shielding (7)" in train.summary()
        and "not read: note, shielding (3)" in valid.summary()
    )
    assert (train + valid).unused == {"shielding": 10, "note": None}
    assert data[list(range(10))].unused == data.unused == {"shielding": 10, "note": 4}

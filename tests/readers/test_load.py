"""Whatever holds structures becomes a Dataset, and everything else an error that says what is wanted."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from molequi import Dataset, Graph
from molequi.errors import ConfigError, DataError
from molequi.readers import load_dataset, write_npz


@pytest.fixture
def water():
    return molecule("H2O")


def test_things_in_memory(water):
    graph = Graph.single(water.positions, water.numbers)
    data = Dataset([graph])
    assert load_dataset(data) is data
    for what in (graph, [graph], (graph,), water, [water], iter([water]), ["O"]):
        found = load_dataset(what)
        assert len(found) == 1 and sorted(found[0].z.tolist()) == [1, 1, 8]


def test_files_by_their_names(tmp_path, monkeypatch, water):
    monkeypatch.chdir(tmp_path)
    write("a.xyz", [water] * 2)
    write("b.traj", water)
    (tmp_path / "c.csv").write_text("smiles\nO\n")
    (tmp_path / "d.smi").write_text("O\n")
    write_npz(load_dataset(water), "e.npz")
    (tmp_path / "f.mol").write_text(
        "\n  x                 3D\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n    0.0000    0.0000    0.0000 O   0  0\nM  END\n"
    )
    np.save("g.npy", np.eye(3))
    np.savez("h.npz", pos=np.eye(3))
    sizes = {"a.xyz": 2, "b.traj": 1, "c.csv": 1, "d.smi": 1, "e.npz": 1, "g.npy": 1, "h.npz": 1}
    for name, size in sizes.items():
        assert (
            len(load_dataset(name)) == len(load_dataset(tmp_path / name)) == len(load_dataset([name])) == size
        )
    with pytest.warns(UserWarning, match="lack hydrogens"):
        assert load_dataset("f.mol")[0].num_nodes == 3
    assert len(load_dataset(["a.xyz", "b.traj"])) == 3
    assert not load_dataset("g.npy")[0].z.any()


def test_what_is_of_interest(tmp_path, water):
    frames = [water.copy() for _ in range(2)]
    frames[0].info.update(dipole=[0.0, 0.0, 0.4], charge=1, energy=-1.0)
    frames[1].info.update(energy=-2.0)
    write(tmp_path / "a.xyz", frames, format="extxyz")
    for what in (tmp_path / "a.xyz", frames):
        with pytest.raises(DataError, match="dipole|charge"):
            load_dataset(what)
        assert set(load_dataset(what, only=("energy",)).quantities) == {"energy"}
        assert not load_dataset(what, only=()).quantities


@pytest.mark.parametrize(
    "what,words",
    [
        (7, "found int '7'; wanted a Dataset, a Graph"),
        ({"a": 1}, "found dict"),
        (b"CCO", "found bytes"),
        (None, "found NoneType"),
        ([], "no structures in an empty list"),
        ([1], "item 0 is int '1'; wanted"),
        ("CCO", r"CCO: no such file; give SMILES as a list: \['CCO'\]"),
        ([Atoms("H"), "CCO"], "item 0 is Atoms and item 1 is str 'CCO'"),
        (["a.csv", "b.csv"], "files are of different kinds, or of a kind of which only one"),
        (["a.xyz", "b.sdf"], "files are of different kinds"),
    ],
)
def test_everything_else_is_told(what, words):
    with pytest.raises(DataError, match=words):
        load_dataset(what)


def test_options_of_the_reader(water):
    with pytest.raises(ConfigError, match="from_atoms.conformers: no such option"):
        load_dataset([water], conformers=2)
    with pytest.raises(ConfigError, match="keys and units are for reading"):
        load_dataset(load_dataset(water), keys={"energy": "E"}, units={"energy": "eV"})
    assert len(load_dataset(["CCO"], conformers=2)) == 2


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
def test_fit_by_path_reads_own_quantities(tmp_path):
    """fit, seeds and evaluate read a quantity of one's own from files, from a column of SMILES of any name."""
    import molequi as mq

    for name, rows in (("train", "CCO,-1\nCCC,1\nCCN,2\nCC,1\n"), ("valid", "CCO,-1\nCCC,1\n")):
        (tmp_path / f"{name}.csv").write_text("Molecule SMILES,logS\n" + rows)
    train, valid = tmp_path / "train.csv", tmp_path / "valid.csv"
    q = mq.Quantity(name="logS")

    def model():
        return mq.Model(mq.EGNN(elements=["H", "C", "N", "O"], cutoff=3.0, channels=4, layers=1), [q])

    quiet = {"progress": False}
    result = mq.fit(model(), train, valid, epochs=1, logging=quiet)
    read = [mq.read_smiles(p, column="Molecule SMILES", quantities=[q]) for p in (train, valid)]
    same = mq.fit(model(), *read, epochs=1, logging=quiet)
    assert len(result.history) == len(same.history) == 1
    assert len(mq.fit(model(), train, valid, seed=[0, 1], epochs=1, logging=quiet).members) == 2
    assert "logS" in str(mq.evaluate(model(), valid))
    (tmp_path / "other.csv").write_text("SMILES,logP\nCCO,1\n")
    with pytest.raises(DataError, match="no 'logS'.*did you mean 'logP'"):
        mq.fit(model(), train, tmp_path / "other.csv", epochs=1, logging=quiet)

"""Files without charge and spin: ``keys={"charge": 0, "spin": 1}`` states those of all structures."""

import ase.build
import ase.io
import numpy as np
import pytest

import molequi as mq
from molequi.cli import main
from molequi.config.automatic.asked import asked_of
from molequi.config.automatic.planned import planned
from molequi.errors import DataError

TOTALS = {"charge": 0, "spin": 1}


@pytest.fixture
def frames(tmp_path):
    """Two molecules of water with energies, without charge and spin, as extended XYZ, npz, HDF5 and SDF."""
    waters = [ase.build.molecule("H2O", info={"energy": -1.0 - k}) for k in range(2)]
    ase.io.write(tmp_path / "water.xyz", waters, format="extxyz", columns=["symbols", "positions"])
    arrays = {
        "z": waters[0].numbers,
        "R": np.stack([w.positions for w in waters]),
        "energy": np.array([w.info["energy"] for w in waters]),
    }
    np.savez(tmp_path / "water.npz", **arrays)
    return tmp_path


def read(path, **options):
    return mq.load_dataset(path, **options)


@pytest.mark.parametrize("name", ["water.xyz", "water.npz"])
def test_totals_of_all_structures(frames, name):
    units = {"units": {"energy": "eV", "positions": "Å"}} if name.endswith("npz") else {}
    data = read(frames / name, keys=TOTALS, **units)
    for graph in data:
        assert float(graph.charge) == 0 and float(graph.spin) == 1
    assert "0 for all, by keys" in str(data.summary())
    assert read(frames / name, **units)[0].charge is None  # what it is without


def test_a_molecule_file_agrees_or_is_refused(frames):
    path = frames / "ions.csv"
    path.write_text("smiles,y\nC,1.0\n[NH4+],2.0\n")
    with pytest.raises(DataError, match=r"charge is 1 there, and keys says 0 for all structures"):
        mq.read_smiles(path, quantities=[mq.Quantity("y")], keys=TOTALS, units={"y": ""})


def test_a_file_that_says_something_else_is_refused(frames):
    atoms = ase.build.molecule("OH", info={"charge": -1, "energy": 0.0})
    with pytest.raises(DataError, match=r"charge is -1 there, and keys says 0 for all structures; leave"):
        mq.from_atoms([atoms], keys=TOTALS)
    assert float(mq.from_atoms([atoms], keys={"spin": 1})[0].charge) == -1


def test_charges_of_atoms_are_something_else(frames):
    """An array of partial charges under the name "charge" is not the total charge."""
    with np.load(frames / "water.npz") as arrays:
        np.savez(frames / "partial.npz", **arrays, charge=np.full((2, 3), 0.3))
    data = mq.read_npz(frames / "partial.npz", keys=TOTALS, units={"energy": "eV", "positions": "Å"})
    assert [float(graph.charge) for graph in data] == [0, 0]


@pytest.mark.parametrize("value", [float("nan"), True])
def test_not_a_total(frames, value):
    with pytest.raises((DataError, mq.errors.ConfigError), match="charge"):
        mq.read_extxyz(frames / "water.xyz", keys={"charge": value})


def test_a_run_from_a_file_without_totals(frames, monkeypatch, capsys):
    """Texts of a command line are numbers, too; names of labels are found as without them."""
    monkeypatch.chdir(frames)
    waters = [ase.build.molecule("H2O", info={"REF_energy": -1.0 - k % 3}) for k in range(12)]
    for k, water in enumerate(waters):
        water.rattle(0.1, seed=k)
    ase.io.write("many.xyz", waters, format="extxyz")
    settings = planned("many.xyz", [], asked_of(keys={"charge": "0", "spin": "1"}))[1]
    assert settings["data"]["extxyz"]["keys"] == {"energy": "REF_energy", "charge": "0", "spin": "1"}
    assert main(["train", "many.xyz", "--keys", "charge=0", "train.epochs=1", "train.out=out"]) == 0
    assert "charge 0 of all" in capsys.readouterr().out
    assert mq.load("out").metadata["trained_on"]["charge"] == [0]

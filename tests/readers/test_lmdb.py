"""ASE databases of fairchem (.aselmdb), with the conventions of OMol25 and OMat24; pickles are refused."""

import json
import pickle
import zlib

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

import molequi as mq
from molequi.errors import DataError, MissingPackageError

pytest.importorskip("ase_db_backends", reason="ase-db-backends (the extra lmdb) is not installed")
lmdb = pytest.importorskip("lmdb")


def frames(count, periodic=False):
    random = np.random.default_rng(count)
    out = []
    for k in range(count):
        atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        atoms.positions += 0.02 * random.normal(size=(3, 3))
        results = {"energy": k / 100 - 14, "forces": random.normal(size=(3, 3))}
        if periodic:
            atoms.set_cell(np.eye(3) * 8)
            atoms.pbc = True
            results["stress"] = 0.01 * random.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


def write(path, atoms, data=lambda k: {}):
    from ase.db import connect

    with connect(path, type="aselmdb") as database:
        for k, one in enumerate(atoms):
            database.write(one, data=data(k))
    return path


def test_omat(tmp_path):
    atoms = frames(4, periodic=True)
    data = mq.load_dataset(write(tmp_path / "omat.aselmdb", atoms))
    wanted = mq.from_atoms(atoms)
    assert sorted(data.quantities) == ["energy", "forces", "stress"]
    for name in data.quantities:
        np.testing.assert_allclose(data.values(name), wanted.values(name), rtol=1e-12)
    np.testing.assert_allclose(data[3].pos, wanted[3].pos, rtol=1e-12)
    assert data[3].cell[0, 0, 0] == 8 and data[3].pbc.all()


def test_omol_in_several_files(tmp_path):
    for name in ("a", "b"):
        write(
            tmp_path / f"{name}.aselmdb",
            frames(3),
            lambda k, name=name: {
                "charge": -1,
                "spin": 2,
                "source": f"{name}{k}",
                "lowdin_charges": [0.1, 0, 0],
            },
        )
    data = mq.read_ase(str(tmp_path / "*.aselmdb"))
    assert len(data) == 6 and {float(g.charge) for g in data} == {-1} and {float(g.spin) for g in data} == {2}
    assert data.info["source"] == ("a0", "a1", "a2", "b0", "b1", "b2") and data.unused["lowdin_charges"] == 6
    assert len(mq.read_ase(tmp_path / "a.aselmdb", index="::-2")) == 2


def test_deleted_rows_and_metadata(tmp_path):
    from ase.db import connect

    path = write(tmp_path / "a.aselmdb", frames(5))
    with connect(path, type="aselmdb") as database:
        database.delete([2])
        database.metadata = {"_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"}}
    data = mq.read_ase(path)
    wanted = mq.from_atoms([a for k, a in enumerate(frames(5)) if k != 1])
    np.testing.assert_allclose(data.values("energy"), wanted.values("energy") * 0.0433641, rtol=1e-5)


class _Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("packed", [False, True])
def test_pickles_are_refused(tmp_path, packed):
    path = write(tmp_path / "a.aselmdb", frames(3))
    content = pickle.dumps(_Evil())
    with lmdb.open(str(path), subdir=False, map_size=2**24) as env, env.begin(write=True) as changed:
        changed.put(b"2", zlib.compress(content) if packed else content)
    with pytest.raises(
        DataError, match="a.aselmdb, row 2: not JSON, .* pickled Python objects, which are never"
    ):
        mq.read_ase(path)
    (tmp_path / "a.aselmdb").rename(tmp_path / "a.lmdb")
    with pytest.raises(DataError, match=r"rows of \.lmdb files are pickled .*wanted .*\.aselmdb"):
        mq.read_ase(tmp_path / "a.lmdb")


# The package opens a file that it could not open once more when it forgets it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_files_and_a_missing_package(tmp_path, monkeypatch):
    path = write(tmp_path / "a.aselmdb", frames(3))
    with lmdb.open(str(path), subdir=False, map_size=2**24) as env, env.begin(write=True) as changed:
        changed.put(b"nextid", zlib.compress(json.dumps("x").encode()))
    with pytest.raises(DataError, match=r"a\.aselmdb: ase.io cannot read it"):
        mq.read_ase(path)
    (tmp_path / "b.aselmdb").write_bytes(b"no database at all")
    with pytest.raises(DataError, match=r"b\.aselmdb: ase.io cannot read it"):
        mq.read_ase(tmp_path / "b.aselmdb")
    assert (tmp_path / "b.aselmdb").read_bytes() == b"no database at all"
    monkeypatch.setattr("molequi.util.optional.find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match=r"ase_db_backends.*pip install 'molequi\[lmdb\]'"):
        mq.read_ase(path)

"""Files of every kind in blocks: a store has what the reader of the whole file has, and damage is found."""

import pickle
import zipfile

import ase.units
import numpy as np
import pytest
import torch
from ase.io import write

import molequi as mq
from molequi.errors import DataError
from molequi.readers.npz_parts import opened_rows
from molequi.readers.parts import parts_of
from molequi.store.manifest import read_manifest
from tests.store.test_store import equal

WATER = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
UNITS = {"energy": "kcal/mol", "forces": "kcal/mol/Å"}
RANDOM = np.random.default_rng(8)


def frames(count=23, **more):
    return {
        "z": np.array([8, 1, 1], np.uint8),
        "R": WATER + 0.03 * RANDOM.normal(size=(count, 3, 3)),
        "E": RANDOM.normal(size=count) - 40,
        "F": RANDOM.normal(size=(count, 3, 3)),
        "theory": np.array("PBE"),
        "step": np.arange(count),
        "perm": np.arange(2),  # as long as some parts are, and no column
        **more,
    }


def molecules(path):
    """Molecules of two kinds with labels of atoms and structures, some missing, and features of pairs."""
    data = mq.read_smiles(["CCO", "CN", "C", "O", "CC", "CO", "C=O"], features=True, optimize=None)
    graphs = []
    for k, g in enumerate(data):
        targets = {
            "energy": torch.tensor([k / 10 if k != 3 else np.nan]),
            "charges": torch.linspace(-0.1, 0.1, g.num_nodes),
        }
        graphs.append(g.replace(targets=targets))
    mq.write_npz(mq.Dataset(graphs, info={"name": list("abcdefg")}), path)


def groups(path):
    h5py = pytest.importorskip("h5py", reason="h5py (the extra hdf5) is not installed")
    with h5py.File(path, "w") as file:
        for name, count in (("a", 5), ("b", 1), ("c", 12), ("d", 4)):
            file[f"{name}/atomic_numbers"] = [8, 1, 1]
            file[f"{name}/conformations"] = WATER + 0.03 * RANDOM.normal(size=(count, 3, 3))
            file[f"{name}/dft_total_energy"] = np.linspace(-76, -75.9, count)
            file[f"{name}/dft_total_energy"].attrs["units"] = "hartree"
            file[f"{name}/dft_total_gradient"] = 0.01 * RANDOM.normal(size=(count, 3, 3))
            file[f"{name}/dft_total_gradient"].attrs["units"] = "hartree/bohr"
            file[f"{name}/smiles"] = [b"O"]


def make(kind, path):
    """A file, and the options to read it."""
    arrays = frames()
    if kind == "stored":
        np.savez(path.with_suffix(".npz"), **arrays)
    elif kind == "packed":
        np.savez_compressed(path.with_suffix(".npz"), **arrays)
    elif kind == "periodic":  # three frames, so that the shapes of cells and labels look alike
        more = {"cell": np.eye(3) * 9, "pbc": np.array([True, True, False])}
        three = frames(3, z=np.array([[8, 1, 1]] * 3), **more)
        np.savez(path.with_suffix(".npz"), **three | {"R": np.asfortranarray(three["R"])})
    elif kind == "molecules":
        molecules(path.with_suffix(".npz"))
        return path.with_suffix(".npz"), {}
    elif kind == "hdf5":
        groups(path.with_suffix(".h5"))
        return path.with_suffix(".h5"), {}
    else:
        if kind == "aselmdb":
            pytest.importorskip("ase_db_backends", reason="ase-db-backends (the extra lmdb) is not installed")
        from ase.db import connect

        data = mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":11")
        with connect(path.with_suffix(f".{kind}")) as database:
            for g in data:
                database.write(mq.to_atoms(g), data={"charge": 0, "spin": 1})
        return path.with_suffix(f".{kind}"), {}
    return path.with_suffix(".npz"), {"units": UNITS}


KINDS = ["stored", "packed", "periodic", "molecules", "hdf5", "db", "aselmdb"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [2, 1000])
def test_a_store_has_what_the_whole_file_has(tmp_path, kind, block):
    path, options = make(kind, tmp_path / "file")
    whole = mq.load_dataset(path, **options)
    stored = mq.prepare(path, tmp_path / "s", block=block, progress=False, **options)
    segments = read_manifest(tmp_path / "s").segments
    assert len(segments) == -(-len(whole) // block) and len(whole) >= 3
    if kind == "molecules":  # a store has pairs as 32-bit numbers
        whole = mq.prepare(whole, tmp_path / "memory", progress=False)
    equal(whole, stored)


def test_several_files(tmp_path):
    make("packed", tmp_path / "1")
    make("stored", tmp_path / "2")
    files = [str(tmp_path / f"{k}.npz") for k in (1, 2)]
    stored = mq.prepare(files, tmp_path / "one", block=4, units=UNITS, progress=False)
    equal(mq.read_npz(files[0], units=UNITS) + mq.read_npz(files[1], units=UNITS), stored)


@pytest.mark.parametrize("kind", ["packed", "hdf5", "db"])
def test_another_process_reads_the_same(tmp_path, kind):
    path, options = make(kind, tmp_path / "file")
    parts = list(parts_of(path, 5, options))
    assert len(parts) == -(-len(mq.load_dataset(path, **options)) // 5)
    for part in parts:
        equal(part.read(), pickle.loads(pickle.dumps(part)).read())


@pytest.mark.parametrize("kind", ["packed", "stored", "hdf5"])
def test_an_interrupted_preparation_continues(tmp_path, kind, monkeypatch):
    path, options = make(kind, tmp_path / "file")
    options |= {"block": 4, "progress": False}
    wanted = mq.prepare(path, tmp_path / "whole", **options)
    from molequi import preparation

    made, calls = preparation._made, []

    def stopping(part, **more):
        calls.append(part.where)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made(part, **more)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_made", stopping)
        with pytest.raises(KeyboardInterrupt):
            mq.prepare(path, tmp_path / "s", **options)
    assert calls[1] == f"{path}, structures 4 to 7" and read_manifest(tmp_path / "s").structures == 8
    assert mq.prepare(path, tmp_path / "s", **options).digest == wanted.digest


@pytest.mark.parametrize("kind", ["packed", "stored"])
def test_only_the_rows_of_a_part_are_read(tmp_path, kind, monkeypatch):
    """A part of a file makes arrays of that part, and what is packed is unpacked once."""
    path, _ = make(kind, tmp_path / "file")
    opened = []
    opening = zipfile.ZipFile.open
    monkeypatch.setattr(
        zipfile.ZipFile,
        "open",
        lambda self, name, *more, **o: opened.append(name) or opening(self, name, *more, **o),
    )
    wanted = dict(np.load(path))
    with opened_rows(path) as rows:
        first = rows.read(0, 5)
        before = len(opened)
        parts = [first, *(rows.read(k, min(k + 5, 23)) for k in range(5, 23, 5))]
        assert len(opened) == before  # streams and places go on
        for name in ("R", "E", "F", "step"):
            assert [len(part[name]) for part in parts] == [5, 5, 5, 5, 3]
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), wanted[name])
        assert first["z"].tolist() == [8, 1, 1] and parts[2].first == 10
        np.testing.assert_array_equal(rows.read(3, 4)["R"], wanted["R"][3:4])  # backwards


@pytest.mark.parametrize("kind", ["packed", "stored"])
def test_damaged_arrays_are_found(tmp_path, kind):
    path, options = tmp_path / "file.npz", {"units": UNITS}
    (np.savez if kind == "stored" else np.savez_compressed)(path, **frames(300))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("F.npy").header_offset
    content[place + 16000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.npz: damaged or truncated \.npz file"):
        mq.prepare(path, tmp_path / "s", block=4, progress=False, **options)
    path.write_bytes(content[:-300])
    with pytest.raises(DataError, match=r"file\.npz: (damaged or truncated|not a readable) \.npz file"):
        mq.prepare(path, tmp_path / "t", block=4, progress=False, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"E": np.zeros(22)}, r"'E' has the shape \(22,\) for 23 frames; wanted one entry a frame"),
        ({"R": np.zeros((0, 3, 3))}, "no frames in this file|for 0 frames"),
        ({"R": np.where(np.arange(23)[:, None, None] == 17, np.nan, 1.0) * WATER}, "frame 17: "),
        ({"box": np.eye(3)}, "'box' would not be read"),
    ],
)
def test_faulty_frames_are_named(tmp_path, change, message):
    np.savez(tmp_path / "a.npz", **frames() | change)
    with pytest.raises(DataError, match=message):
        mq.prepare(tmp_path / "a.npz", tmp_path / "s", block=5, units=UNITS, progress=False)


def test_labels_of_some_groups(tmp_path):
    """Missing labels and a unit that only some groups state."""
    h5py = pytest.importorskip("h5py", reason="h5py (the extra hdf5) is not installed")
    groups(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["c/dft_total_gradient"]
        file["d/dft_total_energy"][2] = np.nan
    names = {"partial": ["energy", "forces"], "quantities": ["energy", "forces"]}
    whole = mq.read_hdf5(tmp_path / "a.h5", **names)
    equal(whole, mq.prepare(tmp_path / "a.h5", tmp_path / "s", block=4, progress=False, **names))
    assert whole.known("forces").sum() == 10 and whole.known("energy").sum() == 21
    with pytest.raises(DataError, match=r"group c, structure 0: no 'dft_total_gradient'.*partial="):
        mq.prepare(tmp_path / "a.h5", tmp_path / "t", block=4, progress=False)


def test_revised_md17(real_data, tmp_path):
    path = real_data / "rmd17" / "rmd17_ethanol_train_01.npz"
    stored = mq.prepare(path, tmp_path / "s", block=300, units=UNITS, progress=False)
    raw = np.load(path)
    np.testing.assert_allclose(stored.values("energy"), raw["energies"] * ase.units.kcal / ase.units.mol)
    np.testing.assert_array_equal(stored[999].pos, raw["coords"][999])
    assert list(stored.info["old_energies"]) == raw["old_energies"].tolist()


def test_extended_xyz_that_does_not_end(tmp_path):
    write(
        tmp_path / "a.xyz",
        [mq.to_atoms(g) for g in mq.read_extxyz(mq.shipped("ethanol_300K.xyz"), index=":3")],
    )
    (tmp_path / "a.xyz").write_text((tmp_path / "a.xyz").read_text()[:-1])
    with pytest.warns(mq.errors.DataWarning, match="the last line does not end"):
        mq.prepare(tmp_path / "a.xyz", tmp_path / "s", progress=False)
    (tmp_path / "b.xyz").write_text("\n")
    with pytest.raises(DataError, match="no frames in this file"):
        mq.prepare(tmp_path / "b.xyz", tmp_path / "t", progress=False)

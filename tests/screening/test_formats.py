"""Screening reads what `prepare` reads, and stores: each structure once, with the numbers of extended XYZ."""

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

import molequi as mq
from molequi.errors import ConfigError, DataError, OtherSettingsError
from molequi.readers.blocks import cut, source_of
from molequi.readers.inputs import structures_of
from molequi.screening.work import BlockWork

from .conftest import FRAMES, water
from .test_screen import contents, interrupted, rows_of

KINDS = ["npz", "packed", "molecules", "h5", "db", "aselmdb", "store"]
UNITS = {"energy": "eV", "forces": "eV/Å"}


def labelled():
    """Structures with energies, and forces of some."""
    random = np.random.default_rng(5)
    out = []
    for k in range(FRAMES):
        atoms = water(k)
        atoms.calc = SinglePointCalculator(atoms, energy=random.normal(), forces=random.normal(size=(3, 3)))
        out.append(atoms)
    return out


def make(kind, folder, frames):
    """The structures in a file of another kind, and what is to be said about its units."""
    if kind == "store":
        write(folder / "prepared.xyz", frames)
        mq.prepare(folder / "prepared.xyz", folder / "store", cutoff=4.0, block=7, progress=False)
        return folder / "store", {}
    if kind == "molecules":
        mq.write_npz(mq.from_atoms(frames), folder / "m.npz")
        return folder / "m.npz", {}
    if kind in ("db", "aselmdb"):
        if kind == "aselmdb":
            pytest.importorskip("ase_db_backends", reason="ase-db-backends (the extra lmdb) is not installed")
        from ase.db import connect

        with connect(folder / f"waters.{kind}") as database:
            for atoms in frames:
                database.write(atoms)
        return folder / f"waters.{kind}", {}
    pos = np.array([a.positions for a in frames])
    energy = np.array([a.calc.results["energy"] for a in frames])
    forces = np.array([a.calc.results["forces"] for a in frames])
    if kind == "h5":
        h5py = pytest.importorskip("h5py", reason="h5py (the extra hdf5) is not installed")
        with h5py.File(folder / "waters.h5", "w") as file:
            for k, part in enumerate((slice(0, 4), slice(4, FRAMES))):
                file[f"{k}/atomic_numbers"] = frames[0].numbers
                for name, array in (("coordinates", pos), ("energy", energy), ("forces", forces)):
                    file[f"{k}/{name}"] = array[part]
        return folder / "waters.h5", {"units": UNITS}
    save = np.savez if kind == "npz" else np.savez_compressed
    save(folder / "waters.npz", z=frames[0].numbers, R=pos, E=energy, F=forces)
    return folder / "waters.npz", {"units": UNITS}


@pytest.fixture
def run(model_file, tmp_path):
    def call(inputs, name="out", **options):
        options = {"block": 5, "format": "csv", "progress": False, **options}
        return mq.screen(model_file, inputs, out=tmp_path / name, **options)

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_structures_of_every_kind(run, kind, tmp_path, frames):
    """Predictions are those of extended XYZ, also of the atoms; errors are those of its labels."""
    atoms = labelled()
    write(frames, atoms)
    path, given = make(kind, tmp_path, atoms)
    wanted, done = run(frames, "xyz", errors=True), run(path, errors=True, **given)
    assert (done.inputs, done.predicted, done.failed) == (FRAMES, FRAMES, 0) and len(done.parts) == 5
    rows = rows_of(done)
    assert [int(row["input"]) for row in rows] == [int(row["record"]) for row in rows] == list(range(FRAMES))
    for row, other in zip(rows, rows_of(wanted), strict=True):
        assert (row["file"], row["formula"], row["atoms"]) == (str(path), "H2O", "3")
        assert float(row["gap (eV)"]) == pytest.approx(float(other["gap (eV)"]), rel=1e-6)
    found, same = ([one for p in done_.structures for one in read(p, ":")] for done_ in (done, wanted))
    assert [one.info["input"] for one in found] == list(range(FRAMES))
    np.testing.assert_allclose([a.get_forces() for a in found], [a.get_forces() for a in same], atol=1e-6)
    assert done.errors.numbers() == pytest.approx(wanted.errors.numbers(), rel=1e-5)
    assert "forces_mae" in done.errors.numbers()


@pytest.mark.parametrize("kind", ["packed", "h5", "store"])
def test_an_interrupted_screening_goes_on(run, kind, tmp_path, monkeypatch):
    path, _ = make(kind, tmp_path, labelled())
    run(path, "whole")
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    with monkeypatch.context() as patch:
        called = interrupted(patch, 99)
        run(path)
        assert called == [2, 3, 4]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_worker_processes(run, tmp_path):
    """Blocks of groups reach them, too."""
    path, _ = make("h5", tmp_path, labelled())
    run(path, "alone")
    run(path, processes=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_one_faulty_structure_spoils_no_other(run, tmp_path):
    atoms = labelled()
    atoms[7].positions[2] = atoms[7].positions[1]
    atoms[11].positions[0, 0] = np.nan
    path, given = make("npz", tmp_path, atoms)
    for options in ({}, {"errors": True, **given}):
        done = run(path, f"out{len(options)}", **options)
        reasons = {k: row["reason"] for k, row in enumerate(rows_of(done)) if row["reason"]}
        assert [*reasons] == [7, 11] and (done.predicted, done.failed) == (FRAMES - 2, 2)
        assert "frame 7" in reasons[7] and "frame 11" in reasons[11] and "finite" in reasons[11]
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"z": np.array([16, 1, 200])})
    done = run(path, "elements")
    assert {row["reason"] for row in rows_of(done)} == {"200 is not the atomic number of an element"}
    np.savez(path, **arrays | {"z": np.array([16, 1, 1])})
    assert all(row["reason"].startswith("S: not an element") for row in rows_of(run(path, "sulfur")))


@pytest.mark.parametrize("kind", ["npz", "h5", "store"])
def test_files_that_change_are_found(run, kind, tmp_path, monkeypatch):
    path, _ = make(kind, tmp_path, labelled())
    work = BlockWork.__call__

    def changing(self, block):
        if block.number == 2:
            (tmp_path / "new").mkdir()
            if kind == "store":
                write(tmp_path / "prepared.xyz", labelled()[::-1])
                mq.prepare(tmp_path / "prepared.xyz", path, restart=True, progress=False)
            else:
                make(kind, tmp_path, labelled()[::-1])
        return work(self, block)

    monkeypatch.setattr(BlockWork, "__call__", changing)
    with pytest.raises(DataError, match="changed since the screening began .records from 10 on"):
        run(path)
    monkeypatch.undo()
    with pytest.raises(OtherSettingsError, match=r"inputs\.0\.sha256"):
        run(path)


def test_what_concerns_all_structures_ends_the_screening(run, tmp_path):
    path, _ = make("npz", tmp_path, labelled())
    with pytest.raises(DataError, match="does not say the unit of energy"):
        run(path, errors=True)
    (tmp_path / "other.json").write_text('{"numbers": []}')
    with pytest.raises(
        DataError, match=r"other\.json: (is not an ASE database.*prepare|ase\.io does not know)"
    ):
        run(tmp_path / "other.json", "other")
    path, _ = make("store", tmp_path, labelled())
    source = source_of(path, "store")
    block, _ = next(cut(source, 5))
    inputs = structures_of(source, block, None, {"quantities": [mq.Quantity(name="energy", unit="Hartree")]})
    with pytest.raises(DataError, match="store: energy in eV; wanted Hartree"):
        inputs.open()


def test_stores_say_how_they_were_read(run, tmp_path, smiles, frames):
    path, _ = make("store", tmp_path, labelled())
    with pytest.raises(ConfigError, match="is a store of prepared structures.*leave out units and keys"):
        run(path, units={"positions": "Bohr"})
    with pytest.raises(ConfigError, match=r"structures \(.*stores\) and molecules .* a folder of its own"):
        run([path, smiles])
    done = run([path, frames])
    assert done.inputs == 2 * FRAMES and rows_of(done)[-1]["file"] == str(frames)

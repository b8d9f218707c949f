"""Stores of prepared structures: the same data as in memory, whatever happens while they are written."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write

import molequi as mq
from molequi import preparation
from molequi.data.batches import Loader
from molequi.errors import ConfigError, DataError
from molequi.store.manifest import read_manifest
from molequi.store.tables import TextColumn
from tests.data.test_structures import same

FILE = mq.shipped("ethanol_300K.xyz")


@pytest.fixture(scope="module")
def memory():
    return mq.read_extxyz(FILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "ethanol"
    mq.prepare(FILE, path, cutoff=4.0, block=70, progress=False)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "run.lock"}


def equal(a, b):
    assert len(a) == len(b) and a.quantities == b.quantities and a.unused == b.unused and a.found == b.found
    assert list(a.origins) == list(b.origins)
    assert {k: list(v) for k, v in a.info.items()} == {k: list(v) for k, v in b.info.items()}
    for x, y in zip(a, b):
        same(x, y)


def test_a_store_has_what_the_file_has(memory, folder):
    stored = mq.read_store(folder)
    equal(memory.connected(4.0), stored)
    assert stored.connected(4.0) is stored  # the neighbor lists are not searched again
    assert stored.summary() == memory.summary().replace(str(FILE), str(folder))
    equal(mq.load_dataset(folder), stored)


def test_other_neighbor_lists_are_searched(memory, folder):
    with pytest.warns(mq.errors.DataWarning, match=r"(?s)stored for cutoff=4, k=None.*--cutoff 3.0"):
        searched = mq.read_store(folder)[:9].connected(3.0)
    for x, y in zip(memory[:9].connected(3.0), searched):
        same(x, y)


def test_parts_labels_and_statistics(memory, folder):
    stored = mq.read_store(folder, index="::7", keys={"dipole": None})
    wanted = mq.read_extxyz(FILE, index="::7", keys={"dipole": None}).connected(4.0)
    for x, y in zip(wanted, stored):
        same(x, y)
    assert list(stored.origins) == list(wanted.origins) and sorted(stored.quantities) == ["energy", "forces"]
    assert stored.statistics(4.0) == wanted.statistics(4.0)
    a, b = stored.split([30, 20], seed=3), wanted.split([30, 20], seed=3)
    for x, y in zip(a[1], b[1]):
        same(x, y)
    assert [sorted(mq.data.duplicates(p)) for p in (a, b)] == [[], []]


def test_digests_tell_parts_and_labels_apart(folder):
    stored = mq.read_store(folder)
    digests = [
        stored.digest,
        stored[:5].digest,
        stored[1:6].digest,
        mq.read_store(folder, quantities=["energy"]).digest,
    ]
    assert len(set(digests)) == 4
    assert stored[:5].digest == mq.read_store(folder)[:5].digest


def test_a_training_on_a_store_is_that_in_memory(memory, folder):
    def trained(data):
        torch.manual_seed(0)
        model = mq.Model(mq.EGNN(elements=["H", "C", "O"], channels=4, layers=1, cutoff=4.0), ["energy"])
        parts = data.split({"train": 20, "valid": 8}, seed=1)
        result = mq.fit(model, **parts, epochs=2, batch_size=4, logging={"progress": False})
        return result.history, model.state_dict()

    (first, weights), (second, again) = trained(memory), trained(mq.read_store(folder))
    for row, other in zip(first, second):
        assert {k: v for k, v in row.items() if k != "seconds"} == {
            k: v for k, v in other.items() if k != "seconds"
        }
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_another_process_maps_the_files(folder):
    """What is sent to a worker is the path, not the data."""
    stored = mq.read_store(folder)[10:300]
    sent = pickle.dumps(Loader(stored, ["energy"]).graphs)
    assert len(sent) < 290 * 8 * 2 + 2000  # two numbers for each structure
    again = pickle.loads(sent)
    assert list(again.columns.targets) == ["energy"]
    same(stored.graphs.with_targets(["energy"]).batch([3, 1]), again.batch([3, 1]))


@pytest.fixture
def frames():
    """40 frames: some periodic, some with a column, forces in the second half."""
    random = np.random.default_rng(2)
    out = []
    for k in range(40):
        atoms = Atoms("OH2", random.normal(size=(3, 3)) + [[0, 0, 0], [3, 0, 0], [0, 3, 0]])
        if k % 20 > 9:
            atoms.set_cell(np.eye(3) * 9)
            atoms.pbc = True
        atoms.info["energy"] = float(k)
        if k > 30:
            atoms.info["family/name"] = f"f{k}"
        if k >= 20:
            atoms.arrays["forces"] = random.normal(size=(3, 3))
        out.append(atoms)
    return out


def test_fields_columns_and_labels_may_come_late(frames, tmp_path):
    write(tmp_path / "a.xyz", frames, format="extxyz")
    options = {"partial": ["forces"], "quantities": ["energy", "forces"]}
    memory = mq.read_extxyz(tmp_path / "a.xyz", **options)
    mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=7, cutoff=5.0, progress=False, **options)
    equal(memory.connected(5.0), mq.read_store(tmp_path / "s"))


def test_partial_labels_that_nobody_has(frames, tmp_path):
    write(tmp_path / "a.xyz", frames[:20], format="extxyz")
    options = {"partial": ["forces"], "quantities": ["energy", "forces"]}
    with pytest.raises(DataError, match="no structure has a label 'forces'"):
        mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=7, progress=False, **options)


def test_labels_that_come_and_go_are_refused(frames, tmp_path):
    write(tmp_path / "a.xyz", frames, format="extxyz")
    with pytest.raises(DataError, match=r"frames 20 to 29.*'forces'.*quantities=.*partial="):
        mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=10, progress=False)
    write(tmp_path / "b.xyz", frames[::-1], format="extxyz")
    with pytest.raises(DataError, match=r"frames 20 to 29: no label 'forces'.*partial=\['forces'\]"):
        mq.prepare(tmp_path / "b.xyz", tmp_path / "t", block=10, progress=False)
    with pytest.raises(DataError, match="prepared in part, 20 structures so far"):
        mq.read_store(tmp_path / "t")


def test_several_processes_write_the_same_files(folder, tmp_path):
    mq.prepare(FILE, tmp_path / "two", cutoff=4.0, block=70, processes=2, progress=False)
    assert files_of(tmp_path / "two") == files_of(folder)


def test_gzip_and_databases_are_read_in_blocks(memory, tmp_path):
    import gzip

    (tmp_path / "e.xyz.gz").write_bytes(gzip.compress(FILE.read_bytes()))
    stored = mq.prepare(tmp_path / "e.xyz.gz", tmp_path / "s", block=150, progress=False)
    assert len(read_manifest(tmp_path / "s").segments) == 3
    for x, y in zip(memory, stored):
        same(x, y)
    write(tmp_path / "e.db", [mq.to_atoms(g) for g in memory[:25]])
    stored = mq.prepare(tmp_path / "e.db", tmp_path / "d", block=10, progress=False)
    assert len(read_manifest(tmp_path / "d").segments) == 3
    for x, y in zip(mq.read_ase(tmp_path / "e.db"), stored):
        same(x, y)


def test_a_killed_preparation_continues(folder, tmp_path):
    """Killed at several moments, the store becomes that of a run that was not killed."""
    code = f"import molequi as mq; mq.prepare({str(FILE)!r}, {str(tmp_path / 's')!r}, cutoff=4.0, block=70)"
    process = subprocess.Popen(
        [sys.executable, "-c", code.replace("block=70", "block=70, progress=False")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    manifest = tmp_path / "s" / "store.json"
    while process.poll() is None and not manifest.exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read_manifest(tmp_path / "s").structures
    assert 0 < before < 400
    with open(next((tmp_path / "s").glob("*-field.pos.bin")), "ab") as file:
        file.write(b"half a row")  # as a kill within a write leaves it
    mq.prepare(FILE, tmp_path / "s", cutoff=4.0, block=70, progress=False)
    assert files_of(tmp_path / "s") == files_of(folder)


def test_structures_are_added(memory, tmp_path):
    lines = FILE.read_text().splitlines(keepends=True)
    (tmp_path / "a.xyz").write_text("".join(lines[: 11 * 30]))
    (tmp_path / "b.xyz").write_text("".join(lines[11 * 30 : 11 * 50]))
    first = mq.prepare(tmp_path / "a.xyz", tmp_path / "s", progress=False)
    opened = first.graphs[7]
    both = mq.prepare(tmp_path / "b.xyz", tmp_path / "s", append=True, progress=False)
    assert len(first) == 30 and len(both) == 50
    for x, y in zip(memory[:50], both):
        same(x, y)
    same(opened, first.graphs[7])
    assert len(pickle.loads(pickle.dumps(first.graphs))) == 30  # a store that has grown since
    with pytest.raises(ConfigError, match="is in .* already"):
        mq.prepare(tmp_path / "b.xyz", tmp_path / "s", append=True, progress=False)


def test_data_in_memory_are_stored(memory, tmp_path):
    stored = mq.prepare(memory[::9], tmp_path / "s", progress=False)
    for x, y in zip(memory[::9], stored):
        same(x, y)
    assert list(stored.origins) == list(memory[::9].origins)
    connected = memory[:4].connected(None)
    stored = mq.prepare(connected, tmp_path / "t", progress=False)
    assert stored.connected(None) is stored
    for x, y in zip(connected, stored):
        same(x, y)
    with pytest.raises(DataError, match="neighbor lists of"):
        mq.prepare(memory[4:6], tmp_path / "t", append=True, progress=False)


@pytest.mark.parametrize("name", ["field.pos", "graph_target.energy", "edge_index", "origin.text"])
def test_a_damaged_file_is_found(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "s")
    (path,) = (tmp_path / "s").glob(f"*-{name.replace('_', '?')}.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="structures 140 to 209 are not as they were|structures 210 to 279"):
        mq.read_store(tmp_path / "s")
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="bytes, and the manifest says"):
        mq.read_store(tmp_path / "s", verify=False)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        mq.read_store(tmp_path / "s", verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: "junk", "cannot be read"),
        (lambda m: [], "is not the manifest"),
        (lambda m: m | {"format": 99}, "later version"),
        (lambda m: m | {"surprise": 1}, "not a manifest as molequi writes it"),
        (lambda m: m | {"tables": {"a": {"dtype": "O"}}}, "not a manifest as molequi writes it"),
        (lambda m: m | {"segments": []}, "not a manifest as molequi writes it|prepared in part"),
        (
            lambda m: m | {"tables": m["tables"] | {"x": m["tables"]["field.z"] | {"file": "../x"}}},
            "not a manifest as molequi writes it",
        ),
    ],
)
def test_a_strange_manifest_is_refused(folder, tmp_path, change, message):
    shutil.copytree(folder, tmp_path / "s")
    path = tmp_path / "s" / "store.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DataError, match=message):
        mq.read_store(tmp_path / "s")


def test_wrong_folders_and_settings(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"made with cutoff=4.0 in place of cutoff=5.0.*--restart"):
        mq.prepare(FILE, folder, cutoff=5.0, block=70)
    with pytest.raises(ConfigError, match="no store yet"):
        mq.prepare(FILE, tmp_path / "none", append=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"other files \(notes.txt"):
        mq.prepare(FILE, tmp_path)
    with pytest.raises(ConfigError, match="has a store of"):
        mq.prepare(mq.shipped("ethanol_600K.xyz"), folder, cutoff=4.0, block=70)
    with pytest.raises(DataError, match="no store of prepared structures"):
        mq.read_store(tmp_path)
    with pytest.raises(DataError, match="no label 'forcse'; did you mean 'forces'"):
        mq.read_store(folder, quantities=["forcse"])
    with pytest.raises(ConfigError, match="prepare.unit: .*did you mean 'units'"):
        mq.prepare(FILE, tmp_path / "new", unit={"energy": "eV"})
    with pytest.raises(ConfigError, match="prepare.units: an option for reading files"):
        mq.prepare(mq.read_store(folder), tmp_path / "new", units={"energy": "eV"})
    with pytest.raises(DataError, match="keys leaves labels out"):
        mq.read_store(folder, keys={"energy": "E"})


def test_a_file_that_changed_is_not_continued(frames, tmp_path):
    write(tmp_path / "a.xyz", frames[20:], format="extxyz")
    mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=10, progress=False)
    write(tmp_path / "a.xyz", frames[21:], format="extxyz")
    with pytest.raises(ConfigError, match="has changed since"):
        mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=10, progress=False)
    stored = mq.prepare(tmp_path / "a.xyz", tmp_path / "s", block=10, restart=True, progress=False)
    assert len(stored) == 19


def test_a_repaired_file_is_read_again(frames, tmp_path):
    """What was stored of other files stays; the blocks of the faulty one are read again."""
    write(tmp_path / "a.xyz", frames[20:30], format="extxyz")
    broken = [f.copy() for f in frames[30:]]
    broken[8].positions[1, 0] = np.nan
    for old, new in zip(frames[30:], broken):
        new.info, new.arrays["forces"] = dict(old.info), old.arrays["forces"]
    write(tmp_path / "b.xyz", broken, format="extxyz")
    files = [str(tmp_path / "a.xyz"), str(tmp_path / "b.xyz")]
    with pytest.raises(DataError, match="b.xyz, frame 8"):
        mq.prepare(files, tmp_path / "s", block=4, progress=False)
    assert read_manifest(tmp_path / "s").structures == 18
    write(tmp_path / "b.xyz", frames[30:], format="extxyz")
    stored = mq.prepare(files, tmp_path / "s", block=4, progress=False)
    whole = mq.prepare(files, tmp_path / "t", block=4, progress=False)
    equal(stored, whole)
    assert len(stored) == 20 and stored.digest == whole.digest
    assert read_manifest(tmp_path / "s").inputs == read_manifest(tmp_path / "t").inputs


def test_a_file_is_stored_once(frames, tmp_path, monkeypatch):
    write(tmp_path / "a.xyz", frames[20:], format="extxyz")
    with pytest.raises(ConfigError, match="given twice"):
        mq.prepare([str(tmp_path / "a.xyz")] * 2, tmp_path / "s", progress=False)
    mq.prepare(tmp_path / "a.xyz", tmp_path / "s", progress=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is in s already"):
        mq.prepare("a.xyz", "s", append=True, progress=False)


def test_settings_that_are_not_given_are_those_of_the_store(frames, tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.xyz", frames[20:30] if name == "a" else frames[30:], format="extxyz")
    mq.prepare(tmp_path / "a.xyz", tmp_path / "s", cutoff=4.0, block=3, progress=False)
    stored = mq.prepare(tmp_path / "b.xyz", tmp_path / "s", append=True, progress=False)
    assert len(stored) == 20 and stored[-1].cutoff == 4.0 and stored.connected(4.0) is stored


def test_an_interrupted_append_says_how_it_is_finished(frames, tmp_path, monkeypatch):
    files = [str(tmp_path / f"{name}.xyz") for name in "ab"]
    for file, part in zip(files, (frames[20:24], frames[24:30])):
        write(file, part, format="extxyz")
    options = {"block": 3, "progress": False}
    mq.prepare(files[0], tmp_path / "s", **options)
    made, calls = preparation._made, []

    def stopping(part, **more):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made(part, **more)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_made", stopping)
        with pytest.raises(KeyboardInterrupt):
            mq.prepare(files[1], tmp_path / "s", append=True, **options)
    with pytest.raises(ConfigError, match="not complete; finish it first, with all files.*a.xyz, .*b.xyz"):
        mq.prepare(files[1], tmp_path / "s", append=True, **options)
    equal(mq.prepare(files, tmp_path / "s", **options), mq.prepare(files, tmp_path / "t", **options))


def test_a_damaged_store_is_not_added_to(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "s")
    (path,) = (tmp_path / "s").glob("*-field.pos.bin")
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    for append in (False, True):
        file = mq.shipped("ethanol_600K.xyz") if append else FILE
        with pytest.raises(DataError, match="are not as they were stored.*--restart"):
            mq.prepare(file, tmp_path / "s", append=append, progress=False)


def test_what_is_allowed_is_kept(tmp_path):
    wall = [Atoms("H2", [[0, 0, 0], [0, 0, 0.3 + 0.02 * k]], info={"energy": float(k)}) for k in range(20)]
    write(tmp_path / "wall.xyz", wall, format="extxyz")
    stored = mq.prepare(tmp_path / "wall.xyz", tmp_path / "s", allow="close-atoms", progress=False)
    assert "close-atoms" in stored.allow and "close-atoms" in mq.read_store(tmp_path / "s").allow
    more = mq.read_store(tmp_path / "s", allow=["length-unit"])
    assert {"close-atoms", "length-unit"} <= {*more.allow}


def test_options_of_reading_are_those_of_the_preparation(folder):
    with pytest.raises(ConfigError, match="units: .*is a store of prepared structures"):
        mq.load_dataset(folder, units={"energy": "Hartree"})


def _kill(block, **_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("molequi.preparation._made", _kill)
    with pytest.raises(DataError, match=r"frames 0 to 99: a process that read it was killed"):
        mq.prepare(FILE, tmp_path / "s", block=100, processes=2, progress=False)


BEGUN = """
import molequi as mq
if __name__ == "__main__":
    mq.prepare({0!r}, {1!r}, cutoff=6.0, block=2, processes=2, progress=False)
"""


def _running(group: int) -> list[int]:
    """Processes of a group, without those that have ended and are not collected."""
    out = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, owner = stat.read_text().rsplit(")", 1)[1].split()[:3]
            if int(owner) == group and state != "Z":
                out.append(int(stat.parent.name))
    return out


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are counted in /proc")
def test_processes_end_with_a_killed_preparation(tmp_path):
    script = tmp_path / "begun.py"
    script.write_text(BEGUN.format(str(FILE), str(tmp_path / "s")))
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    manifest = tmp_path / "s" / "store.json"
    while process.poll() is None and not manifest.exists():
        time.sleep(0.005)
    assert len(_running(process.pid)) > 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 10
    while (left := _running(process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    for one in left:
        os.kill(one, signal.SIGKILL)
    assert not left


def test_text_columns():
    values = ["a", None, 3, 2.5, True, "ü/é", ""]
    texts = [b"" if v is None else json.dumps(v).encode() for v in values]
    column = TextColumn(np.cumsum([len(t) for t in texts]), np.frombuffer(b"".join(texts), np.uint8))
    assert list(column) == values and column[-1] == "" and list(column[1:3]) == [None, 3]
    with pytest.raises(IndexError):
        column[7]


def test_the_command(tmp_path, capsys):
    from molequi.cli import main

    assert (
        main(
            ["prepare", str(FILE), "--out", str(tmp_path / "s"), "--cutoff", "5", "--keys", "{dipole: null}"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "400 structures of 9 atoms" in out and f"molequi lint {tmp_path / 's'}" in out
    frame = tmp_path / "plain.xyz"
    frame.write_text('1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH 0 0 0\n')
    assert main(["prepare", str(frame), "--out", str(tmp_path / "none")]) == 0
    assert "No labels were read" in (out := capsys.readouterr().out) and "--keys energy=NAME" in out
    run = ["backbone=EGNN", "train.epochs=1", "train.logging.progress=false", "--out", str(tmp_path / "run")]
    assert main(["train", str(tmp_path / "s"), *run]) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()

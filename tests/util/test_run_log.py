"""The log file of a run: what is printed, warnings and errors, each with the time."""

import logging
import re
import threading
import warnings

import pytest
from ase.build import molecule
from ase.io import write

from molequi import fit, run
from molequi.errors import ConfigError, DataError, DataWarning
from molequi.util.run_log import LOGGER, log, note, run_log, say, versions

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) (.*)")


def records(folder):
    """(level, message) of each record of a log file."""
    found = []
    for line in (folder / "run.log").read_text("utf-8").splitlines():
        match = STAMP.match(line)
        if match:
            found.append([*match.groups()])
        else:
            assert line.startswith("    ")
            found[-1][1] += "\n" + line[4:]
    return [tuple(record) for record in found]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = []
    for k in range(6):
        atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -1.0 * k
        frames.append(atoms)
    write("frames.xyz", frames, format="extxyz")
    return {
        "data": {"extxyz": {"path": "frames.xyz", "split": {"train": 4, "valid": 2}}},
        "backbone": {"EGNN": {"channels": 4, "layers": 1}},
        "predict": ["energy"],
        "train": {"epochs": 2, "out": "here", "logging": {"progress": False}},
    }


def test_everything_that_a_run_prints_is_in_its_log(settings, tmp_path, capsys):
    result = run(settings)
    found = records(tmp_path / "here")
    assert found[0][1].startswith("start of process") and "torch" in found[0][1]
    printed = capsys.readouterr().out
    assert printed == f"{found[1][1]}\nreport page: here/report.html\n" and "train: 4 structures" in printed
    epochs = [text for _, text in found if text.startswith("epoch ")]
    assert len(epochs) == 2 and "epoch 2, " in epochs[1] and "valid_loss" in epochs[1]
    assert found[-2:] == [("INFO", str(result)), ("INFO", "report page: here/report.html")]
    assert LOGGER.level == logging.NOTSET and not LOGGER.handlers


def test_continued_runs_append_and_errors_have_a_time(settings, tmp_path):
    run(settings)
    before = (tmp_path / "here" / "run.log").read_text("utf-8")
    run(settings)
    with pytest.raises(ConfigError):
        run(settings, ["train.lr=1"])
    after = (tmp_path / "here" / "run.log").read_text("utf-8")
    assert after.startswith(before)
    found = records(tmp_path / "here")
    assert sum(text.startswith("start of") for _, text in found) == 3
    assert any("was finished already" in text for _, text in found)
    level, text = found[-1]
    assert level == "ERROR" and text.startswith("OtherSettingsError: here holds") and "settings.lr" in text


def test_a_run_that_cannot_start_leaves_no_folder(settings, tmp_path):
    (tmp_path / "frames.xyz").write_text("no structure")
    with pytest.raises(DataError):
        run(settings)
    assert not (tmp_path / "here").exists() and not LOGGER.handlers


def test_members_of_an_ensemble_have_logs_too(settings, tmp_path):
    run(settings, ["train.seed=[0,1]", "train.epochs=1", "train.logging.progress=true"])
    whole = records(tmp_path / "here")
    member = records(tmp_path / "here" / "seed1")
    assert [text for _, text in whole if ", member " in text] == [
        "seed 0, member 1 of 2",
        "seed 1, member 2 of 2",
    ]
    assert sum(text.startswith("epoch 1, ") for _, text in whole) == 2
    assert sum(text.startswith("epoch 1, ") for _, text in member) == 1


def test_warnings_are_logged_and_shown(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = warnings.showwarning
        with run_log(tmp_path):
            warnings.warn("two labels are missing", DataWarning, stacklevel=1)
        assert warnings.showwarning is before
    assert [str(w.message) for w in caught] == ["two labels are missing"]
    assert records(tmp_path)[-1] == ("WARNING", "DataWarning: two labels are missing")


def test_another_process_adds_an_error(tmp_path):
    with run_log(tmp_path):
        log("begun")
    note(tmp_path, "rank 0 is lost:\nit was killed")
    assert records(tmp_path)[-1] == ("ERROR", "rank 0 is lost:\nit was killed")
    assert not LOGGER.handlers
    note(tmp_path / "none", "a run that has no folder yet leaves none")
    assert not (tmp_path / "none").exists()


def test_ends_of_a_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), run_log(tmp_path):
        raise KeyboardInterrupt
    assert records(tmp_path)[-1] == ("WARNING", "interrupted; the same command goes on from here")
    with pytest.raises(ZeroDivisionError), run_log(tmp_path):
        1 / 0
    level, text = records(tmp_path)[-1]
    assert level == "ERROR" and text.startswith("ZeroDivisionError") and "Traceback" in text


def test_blocks_within_blocks(tmp_path, capsys):
    """The same folder has one file; two folders both get what happens within the inner one."""
    inner = tmp_path / "inner"
    inner.mkdir()
    with run_log(tmp_path), run_log(tmp_path / "." / ""), run_log(None):
        log("outside")
        with run_log(inner):
            say("inside")
    assert [text for _, text in records(tmp_path)][1:] == ["outside", "inside"]
    assert [text for _, text in records(inner)][1:] == ["inside"]
    assert capsys.readouterr().out == "inside\n"
    log("after")
    assert records(tmp_path)[-1][1] == "inside"


def test_runs_in_threads_are_kept_apart(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    gate = threading.Barrier(2)

    def work(folder):
        folder.mkdir()
        with run_log(folder):
            gate.wait()
            log(folder.name)
            gate.wait()

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[text for _, text in records(folder)][1:] for folder in folders] == [["a"], ["b"]]


def test_other_processes_of_a_run_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with run_log(tmp_path):
        log("hello")
    assert not (tmp_path / "run.log").exists()


def test_versions_of_packages_without_metadata(monkeypatch):
    from importlib.metadata import PackageNotFoundError

    import molequi.util.run_log as module

    def version(name):
        if name == "rdkit":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(module, "version", version)
    assert versions()["rdkit"] == "unknown" and versions()["torch"] == "1"


def test_fit_logs_too(settings, tmp_path):
    from molequi import EGNN, Model, read_extxyz

    train, valid = read_extxyz("frames.xyz").split([4, 2])
    model = Model(EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"])
    fit(model, train, valid, epochs=1, out="there", logging={"progress": False})
    assert any(text.startswith("epoch 1, ") for _, text in records(tmp_path / "there"))

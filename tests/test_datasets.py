"""The shipped data are found everywhere, and copied on request."""

import hashlib
import re
from pathlib import Path

import pytest

import molequi as mq
from molequi import datasets
from molequi.cli import main
from molequi.config import read_config
from molequi.datasets import SHIPPED, shipped, write_shipped
from molequi.errors import DataError

ROOT = Path(__file__).resolve().parent.parent


def test_every_file_is_found_and_is_the_one_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sums = dict(reversed(line.split()) for line in (ROOT / "data" / "SHA256SUMS").read_text().splitlines())
    assert set(SHIPPED) == set(sums)
    for name, digest in sums.items():
        assert hashlib.sha256(shipped(name).read_bytes()).hexdigest() == digest
    assert len(mq.read_extxyz(mq.shipped("isolated_atoms.xyz"))) == 3


def test_a_wrong_name_and_an_installation_without_data(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"shapes.npt: no such file is shipped; did you mean 'shapes.npz'\?"):
        shipped("shapes.npt")
    monkeypatch.setattr(datasets, "FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(DataError, match=r"bn.xyz: .*this installation lacks it.*Install again: pip install"):
        shipped("bn.xyz")


def test_files_are_copied_and_others_are_not_replaced(tmp_path):
    (path,) = write_shipped(["bn.xyz"], tmp_path / "new")
    assert path == tmp_path / "new" / "bn.xyz" and path.read_bytes() == shipped("bn.xyz").read_bytes()
    assert write_shipped(["bn.xyz"], tmp_path / "new") == [path]
    path.write_text("mine")
    with pytest.raises(DataError, match=r"exists and is another file.*--out FOLDER"):
        write_shipped([], tmp_path / "new")
    assert path.read_text() == "mine" and len(list((tmp_path / "new").iterdir())) == 1
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        write_shipped(["bn.xyz"], tmp_path / "file")


def test_the_command_lists_and_copies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SHIPPED) and "${shipped:NAME}" in out
    assert main(["data", "isolated_atoms.xyz"]) == 0
    assert (tmp_path / "isolated_atoms.xyz").exists()
    assert main(["data", "--out", "all"]) == 0
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(SHIPPED)
    assert main(["data", "bn"]) == 2
    assert "did you mean 'bn.xyz'?" in capsys.readouterr().err


def test_recipes_name_shipped_files_by_their_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "small", "medium", "large", "property", "classify"):
        (reader,) = (
            value for key, value in read_config(name)["data"].items() if key not in ("valid", "test")
        )
        assert Path(reader["path"]).is_file(), name


def test_a_file_that_is_not_shipped_is_named_in_the_run_file(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {extxyz: {path: '${shipped:bn}', split: {train: 1, valid: 1}}}")
    with pytest.raises(
        mq.errors.ConfigError, match=r"run.yaml: bn: no such file is shipped; did you mean 'bn.xyz'"
    ):
        read_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "recipe, words",
    [
        ("acac", r"acac/train_300K.xyz and acac/isolated_atoms.xyz.*github.com/davkovacs/BOTNet-datasets"),
        ("ethanol50", r"rmd17_ethanol_train_01.npz.*doi.org/10.6084/m9.figshare.12672038"),
        ("mocap", r"mocap.npz.*http://mocap.cs.cmu.edu"),
        ("qm9", r"qm9/qm9_train_valid.npz.*pip install qm9pack"),
        ("zundel", r"zundel_first800.xyz.*https://github.com/dilkins/TENSOAP"),
    ],
)
def test_recipes_of_published_data_say_which_where_from_and_how(recipe, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLEQUI_DATA", str(tmp_path))
    with pytest.raises(mq.errors.ConfigError, match=re.compile(words, re.DOTALL)) as caught:
        mq.run(recipe)
    assert f"Then: MOLEQUI_DATA=FOLDER molequi train {recipe}" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_published_file_may_be_in_either_place(tmp_path, monkeypatch):
    from molequi.config.places import published

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOLEQUI_DATA", raising=False)
    assert published("a/b.xyz") == Path("a/b.xyz")
    monkeypatch.setenv("MOLEQUI_DATA", "there")
    assert published("a/b.xyz") == Path("there/a/b.xyz")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.xyz").touch()
    assert published("a/b.xyz") == Path("a/b.xyz")

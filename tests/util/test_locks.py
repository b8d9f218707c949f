"""Folders with files of something else are left as they are, by everything that writes into a folder."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write as ase_write

import molequi as mq
from molequi.cli import main
from molequi.errors import ConfigError
from molequi.util.locks import check_unused, lock_folder

QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def waters(count=12):
    out = []
    for k in range(count):
        atoms: Atoms = molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -10 + float(np.linalg.norm(atoms.positions[1]))
        out.append(atoms)
    return out


def foreign(folder, name):
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other" / name).write_text("mine")
    return folder / "other" / name


def test_what_is_somebody_elses(tmp_path):
    check_unused(tmp_path / "none", ["a"])
    check_unused(tmp_path, ["a"])
    (tmp_path / "a").write_text("")
    check_unused(tmp_path, ["a"])  # nothing would be lost
    (tmp_path / "a").write_text("mine")
    check_unused(tmp_path, ["b"])
    with pytest.raises(ConfigError, match=r"there is a, and .* choose another folder with out= \(--out\)$"):
        check_unused(tmp_path, ["a", "b"])
    with pytest.raises(ConfigError, match="or overwrite with resume='restart'"):
        check_unused(tmp_path, ["a", "b"], restart=False)
    check_unused(tmp_path, ["a"], restart=True)
    with lock_folder(tmp_path):
        pass
    check_unused(tmp_path, ["a"])


@pytest.mark.parametrize("name", ["model.safetensors", "config.yaml", "errors.csv", "metrics.csv"])
@pytest.mark.parametrize("seed", [0, [0, 1]])
def test_fit_leaves_files_of_something_else(tmp_path, name, seed):
    data = mq.from_atoms(waters(), quantities=["energy"])
    file = foreign(tmp_path, name)
    options = {"epochs": 1, "logging": QUIET, "seed": seed}

    def model():
        torch.manual_seed(0)
        return mq.Model(mq.EGNN(elements=["H", "O"], channels=4, layers=1), ["energy"])

    with pytest.raises(ConfigError, match=rf"there is {name}, and molequi did not make this folder"):
        mq.fit(model(), data[:8], data[8:], out="other", **options)
    assert file.read_text() == "mine" and [p.name for p in file.parent.iterdir()] == [name]
    if name == "model.safetensors":
        mq.fit(model(), data[:8], data[8:], out="other", resume="restart", **options)
        mq.fit(model(), data[:8], data[8:], out="other", **options)  # its own folder
        assert file.read_bytes()[:4] != b"mine"


@pytest.mark.parametrize(
    "command, name",
    [
        ("train water.xyz --target energy --out other", "config.yaml"),
        ("train small.yaml train.out=other", "report.html"),
        ("curve small.yaml --out other", "curve.csv"),
        ("analyze water.xyz --out other", "rdf.csv"),
        ("eos model.safetensors copper.xyz --out other", "structure.xyz"),
        # Names of files of a training: the lock of a simulation would hand them to the next training.
        ("md model.safetensors copper.xyz --steps 1 --out other", "config.yaml"),
        ("md model.safetensors copper.xyz --steps 1 --out other --resume restart", "errors.csv"),
        ("relax model.safetensors copper.xyz --out other", "errors.csv"),
        ("relax model.safetensors copper.xyz --out other", "last.xyz"),
        ("analyze water.xyz --out other", "config.yaml"),
        ("curve small.yaml --out other", "config.yaml"),
    ],
)
def test_commands_leave_files_of_something_else(tmp_path, capsys, command, name):
    ase_write("water.xyz", waters(24), format="extxyz")
    ase_write("copper.xyz", bulk("Cu"), format="extxyz")
    (tmp_path / "small.yaml").write_text(
        "data: {extxyz: {path: water.xyz, split: {train: 16, valid: 6}}}\npredict: [energy]\n"
        "backbone: {EGNN: {channels: 4, layers: 1, cutoff: 4.0}}\n"
        "train: {epochs: 1, logging: {progress: false}}\n"
    )
    mq.save(mq.Model(mq.EGNN(elements=["Cu"], channels=4, layers=1), ["energy"]), "model.safetensors")
    file = foreign(tmp_path, name)
    assert main(command.split()) == 2
    assert f"other: there is {name}, and molequi did not make this folder" in capsys.readouterr().err
    assert file.read_text() == "mine" and [p.name for p in file.parent.iterdir()] == [name]


@pytest.mark.parametrize("command", ["md", "relax"])
@pytest.mark.parametrize("name", ["trajectory.xyz", "log.csv", "state.npz"])
def test_a_refused_simulation_leaves_no_lock_by_which_a_training_may_overwrite(
    tmp_path, capsys, command, name
):
    ase_write("water.xyz", waters(24), format="extxyz")
    ase_write("copper.xyz", bulk("Cu"), format="extxyz")
    mq.save(mq.Model(mq.EGNN(elements=["Cu"], channels=4, layers=1), ["energy"]), "model.safetensors")
    file = foreign(tmp_path, name)
    file.write_text("mine\n" * 10)
    steps = ["--steps", "1"] * (command == "md")
    assert main([command, "model.safetensors", "copper.xyz", "--out", "other", *steps]) == 2
    assert name in capsys.readouterr().err
    assert [path.name for path in file.parent.iterdir()] == [name]
    config = foreign(tmp_path, "config.yaml")
    assert main(["train", "water.xyz", "--target", "energy", "--out", "other"]) == 2
    assert config.read_text() == "mine" and file.read_text() == "mine\n" * 10

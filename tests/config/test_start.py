"""Runs that start from a trained model: ``start_from`` in files, ``molequi finetune``, and what they refuse."""

import pytest
import torch
from ase.io import write as ase_write
from omegaconf import OmegaConf

import molequi as mq
from molequi.cli.program import main
from molequi.config.schema import read_config
from molequi.errors import ConfigError, OtherSettingsError
from molequi.readers import to_atoms

from ..morse_kit import morse, tiny

TRAIN = "train: {epochs: 2, lr: 1e-3, batch_size: 5, logging: {progress: false}}\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A trained model, one of another width, new data and a run file."""
    folder = tmp_path_factory.mktemp("files")
    data = morse(20)
    options = dict(epochs=1, batch_size=5, logging={"progress": False})
    mq.fit(tiny(), data[:16], data[16:], **options, out=folder / "first")
    ase_write(folder / "new.xyz", [to_atoms(graph) for graph in morse(16, seed=2)])
    (folder / "run.yaml").write_text(
        f"start_from: {folder}/first\n"
        f"data: {{extxyz: {{path: {folder}/new.xyz, split: {{train: 12, valid: 4}}}}}}\n" + TRAIN
    )
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return files


def test_a_run_file(here, tmp_path):
    """The folder records the file by its digest, and the same run from its config.yaml has the same weights."""
    result = mq.run(here / "run.yaml", ["train.finetune.method=lora", "train.finetune.rank=2"])
    assert "changes of rank 2" in result.reports["finetuning"].method
    config = OmegaConf.to_container(OmegaConf.load("runs/run/config.yaml"))
    first = mq.load(here / "first")
    assert config["start_from"]["model"] == f"{here}/first" and len(config["start_from"]["sha256"]) == 64
    assert config["backbone"]["EGNN"]["channels"] == 8 and config["predict"] == ["energy", "forces"]
    assert "changes of rank 2" in (tmp_path / "runs/run/run.log").read_text()
    again = mq.run("runs/run/config.yaml", ["train.out=again"])
    a, b = result.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], value) for key, value in first.state_dict().items())
    assert "Fine-tuning" in (tmp_path / "runs/run/report.html").read_text()
    finished = mq.run(here / "run.yaml", ["train.finetune.method=lora", "train.finetune.rank=2"])
    assert finished.history == result.history  # it was finished already


def test_without_finetune_all_weights_are_trained(here):
    assert read_config(here / "run.yaml")["train"]["finetune"] == "all"
    settings = read_config(here / "run.yaml", ["train.finetune=heads"])
    assert settings["train"]["finetune"] == "heads"


def test_another_model_does_not_continue_a_run(here, tmp_path):
    mq.run(here / "run.yaml", ["train.epochs=1"])
    model = mq.load(here / "first")
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    mq.save(model, tmp_path / "other.safetensors")
    with pytest.raises(OtherSettingsError, match=r"terms\.finetuning\.start"):
        mq.run(here / "run.yaml", ["train.epochs=1", f"start_from={tmp_path}/other.safetensors"])
    digest = OmegaConf.load("runs/run/config.yaml").start_from.sha256
    with pytest.raises(ConfigError, match="this run began with"):
        read_config(
            here / "run.yaml",
            [f"start_from.model={tmp_path}/other.safetensors", f"start_from.sha256={digest}"],
        )


@pytest.mark.parametrize(
    "overrides,message",
    [
        (
            ["backbone.EGNN.channels=16"],
            "channels: found 16, and the starting model has 8.*leave the section",
        ),
        (["backbone.PaiNN.channels=8"], "found PaiNN, and the starting model is a EGNN"),
        (["predict=[energy,dipole]"], "does not predict 'dipole'"),
        (["predict=[{name: energy, unit: kcal/mol}]"], "another declaration"),
        (["start_from=nowhere.safetensors"], "start_from: nowhere.safetensors: no such file"),
        (["pretrain=gfn2-xtb"], "start_from and pretrain"),
        (["start_from.modle=x"], "did you mean 'model'"),
        (["train.finetune.methd=lora"], "did you mean 'method'"),
        (["train.finetune.replay.data=old.xyz", "train.finetune.replay.weight=0"], "replay has no effect"),
    ],
)
def test_what_does_not_fit_the_model(here, overrides, message):
    with pytest.raises(ConfigError, match=message):
        read_config(here / "run.yaml", overrides)


def test_what_fits_the_model(here):
    settings = read_config(here / "run.yaml", ["backbone.EGNN.channels=8", "predict=[energy]"])
    assert settings["predict"] == ["energy"] and settings["backbone"]["EGNN"]["layers"] == 2
    assert read_config(here / "run.yaml", ["predict=[forces]"])["predict"] == ["energy", "forces"]


def test_an_ensemble_is_no_start(here, tmp_path):
    mq.save(mq.Ensemble([tiny(), tiny(seed=1)]), tmp_path / "both.safetensors")
    with pytest.raises(ConfigError, match="is an ensemble; name one of its members"):
        read_config(here / "run.yaml", [f"start_from={tmp_path}/both.safetensors"])


def test_fewer_quantities(here, tmp_path):
    """The file still says where the starting model came from."""
    model = mq.load(here / "first")
    model.metadata = {**model.metadata, "origin": {"licence": "MIT"}}
    start = mq.save(model, tmp_path / "start.safetensors")
    result = mq.run(here / "run.yaml", [f"start_from={start}", "predict=[energy]", "train.epochs=1"])
    again = mq.load(result.out)
    assert list(again.quantities) == ["energy"] and again.metadata["origin"] == {"licence": "MIT"}


def test_a_recipe_takes_the_backbone_of_the_model(here):
    settings = read_config("small", [f"start_from={here}/first", f"data.extxyz.path={here}/new.xyz"])
    assert list(settings["backbone"]) == ["EGNN"] and settings["train"]["finetune"] == "all"


def test_the_command(here, capsys):
    """`molequi finetune MODEL DATA` and `molequi train DATA start_from=MODEL` train the same weights."""
    words = ["train.epochs=1", "train.logging.progress=false"]
    old = f"train.finetune.replay={here}/new.xyz"
    assert main(["finetune", f"{here}/first", f"{here}/new.xyz", *words, old, "train.out=a"]) == 0
    out = capsys.readouterr().out
    assert f"{here}/first: EGNN" in out and "at lr 0.001" in out and "reference energies" in out
    assert main(["train", f"{here}/new.xyz", f"start_from={here}/first", *words, old, "train.out=b"]) == 0
    a, b = (mq.load(one).state_dict() for one in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "words,message",
    [
        (["new.xyz", "first"], "comes first"),
        (["nowhere.safetensors", "new.xyz"], "no such file"),
        (["first", "new.xyz", "--target", "dipole"], "no 'dipole' to learn"),
        (["first", "new.xyz", "rank=3"], "write train.finetune.rank=3"),
        (["first"], "CONFIG is missing; wanted molequi finetune MODEL mine.xyz"),
    ],
)
def test_wrong_commands(here, capsys, words, message):
    words = [f"{here}/{word}" if word in ("new.xyz", "first") else word for word in words]
    assert main(["finetune", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_published_model_is_a_start(here, monkeypatch):
    """A name that `mq.foundation` knows; it says what to install if its package is not there."""
    import molequi.config.start as module

    monkeypatch.setattr(module, "foundation", lambda name, level=None: mq.load(here / "first"))
    assert list(read_config(here / "run.yaml", ["start_from=7net-0"])["backbone"]) == ["EGNN"]

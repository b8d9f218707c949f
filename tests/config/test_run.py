"""A run from its description to its folder; and the same again."""

import csv

import pytest
import torch
from ase.io import write as ase_write
from omegaconf import OmegaConf

from molequi import Dataset, Graph, load, run
from molequi.errors import ConfigError
from molequi.readers import to_atoms


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A small file and a run over it, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    graphs = []
    for _ in range(16):
        pos = (
            torch.tensor([[0, 0, 0], [1.0, 0, 0], [0, 1.1, 0.2]]).double()
            + 0.1 * torch.randn(3, 3, generator=random)
        ).requires_grad_()
        energy = sum((1 - torch.exp(-(pos[i] - pos[j]).norm())) ** 2 for i, j in ((0, 1), (0, 2), (1, 2)))
        (forces,) = torch.autograd.grad(-energy, pos)
        graphs.append(
            Graph.single(pos.detach(), [8, 1, 1], targets={"energy": energy.detach()[None], "forces": forces})
        )
    ase_write("water.xyz", [to_atoms(graph) for graph in Dataset(graphs)])
    (tmp_path / "small.yaml").write_text(
        "data: {extxyz: {path: water.xyz, split: {train: 10, valid: 4, test: 2}}}\n"
        "backbone: {EGNN: {channels: 8, layers: 1, cutoff: 4.0}}\n"
        "predict: [energy, forces]\n"
        "train: {epochs: 2, lr: 5e-3, batch_size: 5, loss: {energy: 1, forces: 100}, logging: {progress: false}}\n"
    )
    return tmp_path / "small.yaml"


def test_everything_a_run_leaves(config, capsys):
    result = run(config, ["train.lr=1e-2"])
    folder = config.parent / "runs" / "small"
    assert result.out.resolve() == folder
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml",
        "errors.csv",
        "errors.json",
        "learning_curve.png",
        "metrics.csv",
        "model.safetensors",
        "parity.png",
        "report.html",
        "run.lock",
        "run.log",
        "state-0.pt",
        "state-1.pt",
    }
    assert set(result.errors) == {"train", "valid", "test"}
    assert "train: 10 structures of 3 atoms (H 20, O 10)" in capsys.readouterr().out
    model = load(folder / "model.safetensors")
    assert model.elements == (1, 8) and model.metadata["run"]["train"]["lr"] == 1e-2
    with open(folder / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2


def test_the_resolved_config_does_the_same_again(config):
    first = run(config, ["train.out=a"])
    again = run("a/config.yaml", ["train.out=b"])
    assert all(
        torch.equal(x, y)
        for x, y in zip(first.model.state_dict().values(), again.model.state_dict().values())
    )
    as_mapping = OmegaConf.to_container(OmegaConf.load(config))
    as_mapping["train"]["out"] = "c"
    third = run(as_mapping)
    assert third.errors["valid"].numbers() == first.errors["valid"].numbers()


def test_seed_decides_the_start(config):
    a, b = run(config, ["train.out=a", "train.seed=1"]), run(config, ["train.out=b", "train.seed=2"])
    assert not torch.equal(next(a.model.parameters()), next(b.model.parameters()))


def test_an_unknown_argument_names_the_nearest(config):
    with pytest.raises(
        TypeError, match=r"^run\(backbone=\{\}\): run has no such argument; did you mean 'backbones'\?"
    ):
        run(config, backbone={})


def test_mistakes_are_found_before_data_is_read(config):
    with pytest.raises(ConfigError, match="did you mean 'channels'"):
        run(config, ["data.extxyz.path=nowhere.xyz", "backbone.EGNN.chanels=3"])
    assert not (config.parent / "runs").exists()


def test_b5_labels_that_the_file_does_not_have(config):
    text = (config.parent / "water.xyz").read_text().replace(":forces:", ":force:")
    (config.parent / "water.xyz").write_text(text)
    with pytest.raises(
        ConfigError,
        match=r"loss\.forces is 100 and the train data have no labels of 'forces'.*not read: force.*keys=",
    ):
        run(config)
    assert run(config, ["data.extxyz.keys={forces: force}"]).errors["test"]["forces_mae"] > 0


def test_charge_and_new_quantities_from_yaml(config):
    result = run(
        config,
        [
            "predict=[{name: gyration, unit: Å}]",
            "train.loss={gyration: 1}",
            "data.extxyz.keys={gyration: energy}",
            "data.extxyz.quantities=[{name: gyration, unit: Å}]",
        ],
    )
    assert result.errors["valid"]["gyration_mae"] >= 0


@pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")  # toy data
def test_charge_and_spin_that_the_backbone_does_not_take_are_not_read(config):
    """Neither by a run file nor by fit, which reads what the model needs."""
    from ase.io import read as ase_read

    from molequi import EGNN, Inputs, Model, fit
    from molequi.errors import DataError

    frames = ase_read("water.xyz", ":")
    for k, atoms in enumerate(frames):
        atoms.info.update({"spin": 1, "spin_multiplicity": 2} | ({"charge": 0} if k % 2 else {}))
    ase_write("water.xyz", frames)
    run(config, ["train.epochs=1"])
    for inputs in (Inputs(), Inputs(charge=True)):
        model = Model(EGNN(elements=["H", "O"], channels=4, layers=1, cutoff=3.0, inputs=inputs), ["energy"])
        options = {"epochs": 1, "logging": {"progress": False}}
        if inputs.charge:  # the control: a model that takes the charge
            with pytest.raises(DataError, match="no 'charge'.*which 8 of 16 structures have"):
                fit(model, "water.xyz", "water.xyz", **options)
        else:
            fit(model, "water.xyz", "water.xyz", **options)

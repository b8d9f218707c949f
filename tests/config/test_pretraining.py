"""The section `pretrain`: what it leaves, that the training begins with its weights, interrupts, and mistakes."""

import importlib
import os
import shutil

import pytest
import torch
from ase.io import write

import molequi as mq
from molequi.config.schema import read_config
from molequi.errors import CheckpointError, ConfigError, OtherSettingsError
from molequi.training.trainer import Training

from ..morse_kit import morse

pretraining = importlib.import_module("molequi.config.pretraining")
# The small data of these tests are not split as real ones are.
pytestmark = [pytest.mark.filterwarnings("ignore:.* in more than one part:molequi.errors.DataWarning")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that labels frames, as a file."""
    torch.manual_seed(1)
    model = mq.Model(mq.PaiNN(elements=[1, 8], channels=8, layers=1), ["energy", "forces"])
    mq.fit(model, morse(12), morse(12), epochs=60, lr=1e-2, logging={"progress": False})
    file = tmp_path_factory.mktemp("cheap") / "cheap.safetensors"
    mq.save(model, file)
    return file


@pytest.fixture
def teacher(trained, tmp_path, monkeypatch):
    """A folder with structures, and with the file of that model."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained, "cheap.safetensors")
    write("frames.xyz", [mq.to_atoms(g) for g in morse(12)])


def config(**changes):
    return {
        "data": {"extxyz": {"path": "frames.xyz", "split": {"train": 8, "valid": 4}}},
        "backbone": {"PaiNN": {"channels": 8, "layers": 1}},
        "predict": ["energy", "forces"],
        "pretrain": {
            "calculator": "cheap.safetensors",
            "frames": 40,
            "epochs": 2,
            "spacing": 1.0,
            "timestep": 0.5,
        },
        "train": {"epochs": 1, "lr": 1e-9, "out": "run", "logging": {"progress": False}},
    } | changes


def weights(path):
    return {name: value.detach() for name, value in mq.load(path).named_parameters()}


def test_the_training_begins_with_the_weights_of_the_first(teacher):
    result = mq.run(config())
    assert {"frames", "model.safetensors", "metrics.csv"} <= {
        p.name for p in result.out.joinpath("pretrain").iterdir()
    }
    assert len(mq.load_dataset("run/pretrain/frames/frames.xyz")) == 40
    first, last = weights("run/pretrain"), weights("run")
    plain = weights(mq.run(config(pretrain=None), ["train.out=plain"]).out)
    for name, value in first.items():
        torch.testing.assert_close(last[name], value, rtol=0, atol=1e-6)
    assert max(float((plain[n] - v).abs().max()) for n, v in first.items()) > 1e-3  # the control
    # Scales are those of the data, not of the frames.
    scales = {n: dict(mq.load(n).named_buffers()) for n in ("run", "plain", "run/pretrain")}
    names = [n for n, v in scales["plain"].items() if v.is_floating_point()]
    for name in names:
        torch.testing.assert_close(scales["run"][name], scales["plain"][name])
    assert any(not torch.equal(scales["run/pretrain"][n], scales["plain"][n]) for n in names)
    assert "pretrain:" in (result.out / "report.html").read_text()


@pytest.mark.parametrize("step", [3, 15])
def test_what_was_interrupted_goes_on(teacher, monkeypatch, step):
    """Ctrl-C in the first training and in the one that follows: the same weights as without."""
    settings = config(
        train={"epochs": 2, "lr": 1e-3, "out": "run", "logging": {"progress": False}, "batch_size": 2}
    )
    settings["pretrain"]["batch_size"] = 8
    mq.run(settings, ["train.out=whole"])
    steps, plain = [], Training.step

    def stopping(self, *given):
        steps.append(self.folder)
        if len(steps) == step:
            self.save()
            raise KeyboardInterrupt
        plain(self, *given)

    monkeypatch.setattr(Training, "step", stopping)
    with pytest.raises(KeyboardInterrupt):
        mq.run(settings)
    assert (steps[-1].name == "pretrain") == (step == 3)
    if step == 3:
        with pytest.raises(
            ConfigError, match="was stopped in its first training .*start the command .* again"
        ):
            mq.report("run")
    monkeypatch.setattr(Training, "step", plain)
    mq.run(settings)
    wanted, found = weights("whole"), weights("run")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_another_first_training_is_refused(teacher):
    mq.run(config())
    mq.run(config())  # the same: what is there is taken
    for changed in (None, config()["pretrain"] | {"frames": 60}):
        with pytest.raises(
            OtherSettingsError, match="(?s)run holds a training with other settings.*pretrain"
        ):
            mq.run(config(pretrain=changed))
    mq.run(config(pretrain=config()["pretrain"] | {"frames": 60}), ["train.resume=restart"])
    assert len(mq.load_dataset("run/pretrain/frames/frames.xyz")) == 60


def test_the_shorthand_and_its_options(teacher):
    found = read_config(
        config(pretrain="gfn2-xtb"),
        ["pretrain.frames=100", "train.optimizer=soap", "train.optimizer.frequency=2"],
    )
    assert found["pretrain"] == {"calculator": "gfn2-xtb", "frames": 100}
    assert found["train"]["optimizer"] == {"name": "soap", "frequency": 2}
    assert "pretrain" not in read_config(config(), ["pretrain=null"])
    assert read_config(config(), ["pretrain=gfn1-xtb"])["pretrain"] == "gfn1-xtb"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.frames=5", "frames=5: wanted at least 20"),
        ("pretrain.timestep=0.3", "pretrain: spacing=1 fs: wanted a multiple of timestep=0.3 fs"),
        ("train.normalization.standardize=false", "the reference energies of the cheap method would stay"),
        ("pretrain.epochs=0", "pretrain.epochs"),
        ("pretrain.frame=50", "pretrain.frame: .*did you mean 'frames'"),
        ("train.seed=[0, 1]", r"one model is pretrained; train one run for each seed"),
        ("train.compute.devices=2", "on one device; wanted train.compute.devices=1"),
        ("predict=[dipole]", "calculators label energy and forces, and the model predicts dipole"),
        ("pretraining=gfn2-xtb", "pretraining"),
    ],
)
def test_mistakes_are_found_before_data_are_read(teacher, override, message):
    with pytest.raises(ConfigError, match=message):
        read_config(config(), [override])


def test_mistakes_are_found_before_anything_is_sampled(teacher):
    with pytest.raises(
        ConfigError,
        match="did you mean 'gfn2-xtb'.; wanted gfn1-xtb or gfn2-xtb, or a model file; from Python any other ASE",
    ):
        mq.run(config(), ["pretrain.calculator=gfn3-xtb"])
    frames = [mq.to_atoms(g) for g in morse(12)]
    for atoms in frames:
        del atoms.calc.results["energy"]
    write("frames.xyz", frames)
    with pytest.raises(ConfigError, match="no labels of 'energy'"):
        mq.run(config())
    assert not os.path.exists("run/pretrain")


def test_a_begun_training_needs_the_first_one_no_more(teacher):
    mq.run(config())
    os.remove("cheap.safetensors")
    shutil.rmtree("run/pretrain")
    mq.run(config())
    mq.run(config(), ["train.loss={energy: 1, forces: 50}", "train.resume=force", "train.epochs=2"])
    os.remove("run/config.yaml")
    mq.run(config(), ["train.loss={energy: 1, forces: 50}", "train.epochs=2"])
    with open("run/config.yaml", "w") as file:
        file.write("pretrain: [1,")
    with pytest.raises(CheckpointError, match="config.yaml: cannot be read"):
        mq.run(config(), ["train.loss={energy: 1, forces: 50}", "train.epochs=2"])


def test_a_restart_forgets_the_old_training(teacher, monkeypatch):
    """Interrupted in its first training and continued, it must not end with the model of before."""
    mq.run(config())
    shutil.copy("run/model.safetensors", "old.safetensors")
    changed = ["pretrain.epochs=3"]

    def stopping(self, *given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            mq.run(config(), [*changed, "train.resume=restart"])
    mq.run(config(), changed)
    first, last = weights("run/pretrain"), weights("run")
    for name, value in first.items():
        torch.testing.assert_close(last[name], value, rtol=0, atol=1e-6)
    old = weights("old.safetensors")
    assert max(float((old[n] - v).abs().max()) for n, v in last.items()) > 1e-4


def test_validation_frames_are_whole_trajectories_from_all_over(teacher):
    data = morse(40)
    few = mq.Dataset([data[k % 40] for k in range(240)], info={"trajectory": [k // 30 for k in range(240)]})
    train, valid = pretraining._parts(few)  # eight trajectories are too few
    assert (len(train), len(valid)) == (228, 12) and len({*valid.info["trajectory"]}) == 8
    long = mq.Dataset([data[k % 40] for k in range(400)], info={"trajectory": [k // 5 for k in range(400)]})
    train, valid = pretraining._parts(long)
    assert not {*train.info["trajectory"]} & {*valid.info["trajectory"]} and len(valid) == 20


def test_learning_curves_do_not_pretrain(teacher):
    with pytest.raises(ConfigError, match="learning_curve: the section pretrain .*pretrain=null"):
        mq.learning_curve(config(), fractions=[0.5, 1.0])


def test_terms_of_the_loss_without_cheap_labels_are_left_out(teacher):
    """The frames have no dipoles; the first training learns the rest with the weights of the second."""
    frames = [mq.to_atoms(g) for g in morse(12)]
    for k, atoms in enumerate(frames):
        atoms.info["dipole"] = [0.1 * k, 0.0, 0.0]
    write("frames.xyz", frames)
    changes = {"predict": ["energy", "forces", "dipole"]}
    changes["train"] = config()["train"] | {"loss": {"energy": 2, "forces": 7, "dipole": 3}}
    mq.run(config(**changes))
    first = mq.load("run/pretrain").metadata["run"]["train"]["loss"]
    assert {name: term["weight"] for name, term in first.items()} == {"energy": 2, "forces": 7, "dipole": 0}
